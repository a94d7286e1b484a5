"""A program that knows diffusers and not cdmem: it makes pictures from the folders of an export."""

SCRIPT = """
import sys
import numpy as np, torch
from diffusers import ConsistencyModelPipeline, DDIMScheduler, DDPMPipeline
torch.set_num_threads(1)
seeds, times, steps = %s
home = sys.argv[1]
def generators():
    return [torch.Generator().manual_seed(s) for s in seeds]
def load(kind, name):
    pipe = kind.from_pretrained(f"{home}/{name}", low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
out = {}
for name in ("gray", "rgb", "labelled"):
    pipe = load(ConsistencyModelPipeline, name)
    more = {"class_labels": [2, 0, 1]} if name == "labelled" else {}
    def run(**options):
        return pipe(batch_size=len(seeds), output_type="pt", **options, **more).images.numpy()
    out[f"{name}/one"] = run(generator=generators())
    out[f"{name}/two"] = run(generator=generators(), num_inference_steps=2)
    out[f"{name}/more"] = run(generator=generators(), num_inference_steps=None, timesteps=times)
    if name == "rgb":
        latents = torch.stack([torch.randn(3, 8, 8, generator=g) for g in generators()])
        out["rgb/latents"] = run(latents=latents)
        s = pipe.scheduler
        s.set_timesteps(1)
        x = latents * s.init_noise_sigma
        with torch.no_grad():
            f = pipe.unet(s.scale_model_input(x, s.timesteps[0]), s.timesteps[0]).sample
        out["rgb/unclamped"] = s.step(f, s.timesteps[0], x).prev_sample.numpy()
pipe = load(DDPMPipeline, "ddpm")
ddim = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
ddim.set_timesteps(steps)
x = torch.stack([torch.randn(1, 8, 8, generator=g) for g in generators()])
for t in ddim.timesteps:
    with torch.no_grad():
        x = ddim.step(pipe.unet(x, t).sample, t, x).prev_sample
out["ddpm/ddim"], out["ddpm/times"] = x.numpy(), ddim.timesteps.numpy()
assert not any(name.startswith("cdmem") for name in sys.modules)
np.savez(f"{home}/theirs.npz", **out)
"""
