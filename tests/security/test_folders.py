"""Untrusted model folders, of diffusers and exported: what is altered, huge or code is refused, and nothing of it runs.

A folder is audited by itself through diffusers' own scheduler, and read as a teacher.
"""

from __future__ import annotations

import gzip
import json
import struct

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDPMScheduler, EDMEulerScheduler
from safetensors.torch import load_file, save_file

from cdmem.errors import InputError
from cdmem.models.load import load_model
from cdmem.networks import from_record
from cdmem.networks.diffusers import DiffusersUNet
from cdmem.networks.unet import UNetNetwork
from cdmem.training.checkpoint import weights_digest
from cdmem.training.record import ModelRecord
from support.folders import make_unet, saved
from support.hostile import bare
from support.untrusted import exits, memory

AUDIT = "audit --generator p --training_set images.npz --nfe 2 --samples 2 --quiet"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CODE = "from pathlib import Path\nPath({mark!r}).touch()\nclass Evil: pass\n"


PARTS = {"index": "model_index.json", "unet": "unet/config.json", "scheduler": "scheduler/scheduler_config.json"}


def edit(part, **changes):
    def change(folder, song):
        file = folder / PARTS[part]
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def instead(suffix):
    """A pickle for the weights."""

    def change(folder, song):
        (folder / WEIGHTS).unlink()
        torch.save({"a": song}, folder / f"unet/diffusion_pytorch_model{suffix}")

    return change


def beside(folder, song):
    """Pickles and programs beside the good weights are not looked at."""
    for name in ("unet/diffusion_pytorch_model.bin", "scheduler/state.pt", "pytorch_model.bin", "x.pkl"):
        torch.save({"a": song}, folder / name)
    for name in ("pipeline.py", "unet/unet.py", "unet/modeling.py", "scheduler/scheduler.py", "__init__.py"):
        (folder / name).write_text(CODE.format(mark=str(song.mark)))


def with_code(change):
    return lambda folder, song: (beside(folder, song), change(folder, song))


def elsewhere(folder, song):
    saved(folder.parent / "elsewhere")
    edit("index", unet=["../elsewhere/unet", "UNet2DModel"])(folder, song)


def shards(place):
    """diffusers follows the index (inside the folder; older versions also out of it), and the usual file, whose digest
    is taken, is not the one that is read."""

    def change(folder, song):
        tensors = load_file(folder / WEIGHTS)
        save_file({name: t * 2 for name, t in tensors.items()}, folder / "unet" / place, metadata={"format": "pt"})
        content = {"metadata": {}, "weight_map": dict.fromkeys(tensors, place)}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(content))

    return change


def nan(folder, song):
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def weights(make):
    return lambda folder, song: (folder / WEIGHTS).write_bytes(make((folder / WEIGHTS).read_bytes()))


def safetensors(length, text=b"{}"):
    return weights(lambda _: struct.pack("<Q", length) + text)


def tensor(shape, end):
    text = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return safetensors(len(text), text)


# Values that make a folder unreadable.
REFUSED = {
    "index": {
        "_class_name": [["pipeline", "Evil"], "StableDiffusionPipeline"],
        "unet": [["unet", "Evil"], ["evil", "UNet2DModel"], ["../../evil", "UNet2DModel"]],
        "scheduler": [["scheduler", "Evil"], ["diffusers", "PNDMScheduler"], ["os", "system"]],
    },
    "unet": {
        "down_block_types": [["modeling.Evil", "DownBlock2D"], ["os.system", "DownBlock2D"]],
        "act_fn": ["modeling.Evil"],
        "block_out_channels": [[16, 16], [10**9, 10**9], [[8], [16]]],
        "layers_per_block": [10**6],
        "quantization_config": [{"quant_method": "bitsandbytes"}],
        "sample_size": [10**6, None, [8, 9], "x"],
        "num_class_embeds": [3],  # drawn at random they would be audited
        "class_embed_type": ["timestep"],
    },
    "scheduler": {"prediction_type": ["flow"], "num_train_timesteps": [10**12, 1], "beta_start": ["x"]},
}
BOTH, TEACHER = ("audit", "teacher"), ("teacher",)
# What is changed in a good folder; how it is read; a word of the error.
ROWS = {
    f"{part} {key} {value}"[:60]: (with_code(edit(part, **{key: value})), BOTH, "")
    for part, keys in REFUSED.items()
    for key, values in keys.items()
    for value in values
} | {
    **{f"weights as {suffix}": (instead(suffix), BOTH, "") for suffix in (".bin", ".pt", ".ckpt")},
    "pickle named safetensors": (lambda folder, song: bare(folder / WEIGHTS, song, {}), BOTH, ""),
    "path to a good network": (elsewhere, BOTH, ""),
    "shards elsewhere": (shards("../../elsewhere.safetensors"), BOTH, ""),
    "shards": (shards("other.safetensors"), BOTH, "index"),
    "torn weights": (weights(lambda data: data[: len(data) // 2]), BOTH, ""),
    "nan": (nan, TEACHER, ""),
    "length": (safetensors(2**63), BOTH, ""),
    "long": (safetensors(2**33), BOTH, ""),
    "deep": (safetensors(50_000, b"[" * 50_000), BOTH, ""),
    "offsets": (tensor([2**20], 2**62), BOTH, ""),
    "overflow": (tensor([2**62, 8], 16), BOTH, ""),
    "gzip": (weights(gzip.compress), BOTH, ""),
    "no scheduler": (lambda folder, song: (folder / PARTS["scheduler"]).unlink(), BOTH, ""),
    "deep json": (lambda folder, song: (folder / PARTS["unet"]).write_text("[" * 100_000), BOTH, ""),
    "huge": (edit("unet", block_out_channels=[60_000, 60_000]), BOTH, "parameters"),
    "fourier": (edit("unet", time_embedding_type="fourier"), TEACHER, ""),
    "betas": (edit("scheduler", beta_schedule="sigmoid"), TEACHER, ""),
    "own betas": (edit("scheduler", trained_betas=[0.1] * 1000), TEACHER, ""),
    "zero snr": (edit("scheduler", rescale_betas_zero_snr=True), TEACHER, ""),
    "falling betas": (edit("scheduler", beta_start=-0.1, beta_end=0.0), TEACHER, ""),
}


def not_read(folder, *words):
    with memory(1024), pytest.raises(InputError) as error:
        load_model(folder, "model.teacher")
    line = str(error.value)
    assert "\n" not in line and line.startswith("model.teacher") and all(word in line for word in words), line


@pytest.mark.parametrize("row", ROWS)
def test_untrusted_diffusers_folders(row, place, song, refuse):
    change, ways, said = ROWS[row]
    change(saved(place / "p"), song)
    if "audit" in ways:
        refuse(AUDIT, "generator", said)
    if "teacher" in ways:
        not_read(place / "p", said)


KEYS = {"trust_remote_code": True, "custom_pipeline": ".", "auto_map": {"AutoModel": "modeling.Evil"}, "_commit": "x"}
FOLLOWED = {
    "code beside": beside,
    **{f"keys of the {part}": with_code(edit(part, **KEYS)) for part in PARTS},
    "class in the network": with_code(edit("unet", _class_name="modeling.Evil")),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_a_folder_says_of_code_is_not_followed(name, place, song, capsys):
    FOLLOWED[name](saved(place / "p"), song)
    assert exits(AUDIT.split(), capsys)[0] == 0
    assert load_model(place / "p", "model.teacher").role == "teacher"


OTHER = {
    "sigma_min": (EDMEulerScheduler(), {"sigma_min": 100.0}, ""),
    "sigma_data": (EDMEulerScheduler(), {"sigma_data": 0.0}, ""),
    "sigma_max": (EDMEulerScheduler(), {"sigma_max": float("inf")}, ""),
    "prediction": (EDMEulerScheduler(), {"prediction_type": "sample"}, ""),
    "learned variance": (DDPMScheduler(variance_type="learned"), {}, "out_channels"),  # it has no ODE
}


@pytest.mark.parametrize("name", OTHER)
def test_folders_of_other_schedulers(name, tmp_path):
    made, changes, said = OTHER[name]
    saved(tmp_path / "p", make_unet(out_channels=2 if changes == {} else 1), made)
    edit("scheduler", **changes)(tmp_path / "p", None)
    not_read(tmp_path / "p", said)


def test_a_consistency_model_is_no_teacher(tmp_path):
    not_read(saved(tmp_path / "p", None, CMStochasticIterativeScheduler(), ConsistencyModelPipeline), "no ODE")


RECORD = {
    "role": ["pipeline", None],
    "parameterization": ["ddpm", None],
    "scaling": [{"noise_factor": "x"}, {"evil": 1}, [1]],
    "sigma_min": [0.0, -1.0, 100.0, "x", float("nan")],
    "sigma_max": [float("inf"), None],
    "sampler": [{"solver": "exec", "points": 5}, {"solver": "heun", "points": 10**12}, {}],
    "training_set": [None, {}],
    "format": [0, 3, "2", None],
    "digest": ["0" * 64],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in RECORD.items() for v in values], ids=str)
def test_a_model_record_edited_by_hand(tmp_path, key, value):
    """What an exported folder says of itself, as cdmem.json; then one value at a time is spoilt."""
    network = make_unet()
    network.save_pretrained(tmp_path / "unet")
    made = ModelRecord("teacher", (1, 8, 8), 0, 0.5, 0.002, 80.0, "edm", {}, {"solver": "heun", "points": 5}, "raw")
    record = made.plain() | {"training_set": "ab", "step": 3, "digest": weights_digest(UNetNetwork(network))}
    (tmp_path / "cdmem.json").write_text(json.dumps(record))
    assert load_model(tmp_path).record.training_set == "ab"
    (tmp_path / "cdmem.json").write_text(json.dumps(record | {key: value}))
    not_read(tmp_path)


def test_a_network_record_holds_plain_values_only():
    config = dict(make_unet().config)
    made = from_record({"class_path": "cdmem.networks.DiffusersUNet", "init_args": {"config": config}})
    assert made.record() == from_record(made.record()).record()
    assert made.build((1, 8, 8), 0, 0).unet.config.block_out_channels == [8, 16]
    for shape, classes in (((3, 8, 8), 0), ((1, 16, 16), 0), ((1, 8, 8), 5)):
        with pytest.raises(InputError, match="does not fit"):
            made.build(shape, classes, 0)
    wrong = [{"act_fn": {"evil": 1}}, {"dropout": "x" * 1000}, {"norm_eps": float("nan")}, {"layers_per_block": 1000}]
    for settings in (*(config | change for change in wrong), ["not", "a", "mapping"]):
        with pytest.raises(InputError):
            DiffusersUNet(settings)
