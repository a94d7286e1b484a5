"""Small diffusers folders."""

from __future__ import annotations

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel


def make_unet(seed=0, **options):
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16)}
    rest = {"layers_per_block": 1, "norm_num_groups": 4, "add_attention": False}
    return UNet2DModel(**(blocks | sizes | rest | options)).eval()


def saved(folder, unet=None, scheduler=None, pipeline=DDPMPipeline):
    """A folder with a network and a scheduler, by default a small U-Net and DDPM's."""
    pipeline(unet or make_unet(), scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder
