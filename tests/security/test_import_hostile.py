"""Diffusers folders of strangers: what is altered, huge or code is refused in one line, and nothing of it runs."""

from __future__ import annotations

import json
import pickle

import pytest
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDPMScheduler, EDMEulerScheduler
from safetensors.torch import load_file, save_file

from cdmem.errors import InputError
from cdmem.models.load import load_model
from cdmem.networks import from_record
from cdmem.networks.diffusers import DiffusersUNet
from cdmem.training.checkpoint import weights_digest
from support.folders import make_unet, saved


@pytest.fixture(scope="module")
def unet():
    return make_unet()


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickled(folder):
    (folder / WEIGHTS).unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Canary(folder.parent / "sung")))


def pickle_as_safetensors(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps(Canary(folder.parent / "sung")))


def shards(folder, place="../../elsewhere.safetensors"):
    """diffusers follows the index (inside the folder; older versions also out of it), and the usual file, whose digest
    is taken, is not the one that is read."""
    other = folder / "unet" / place
    tensors = load_file(folder / WEIGHTS)
    save_file({name: t * 2 for name, t in tensors.items()}, other, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, place)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def torn(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def nan(folder):
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def config(**changes):
    return lambda folder: edit(folder / "unet/config.json", **changes)


def scheduler(**changes):
    return lambda folder: edit(folder / "scheduler/scheduler_config.json", **changes)


def index(**changes):
    return lambda folder: edit(folder / "model_index.json", **changes)


HOSTILE = {
    "pickle": pickled,
    "pickle in disguise": pickle_as_safetensors,
    "shards elsewhere": shards,
    "shards": lambda folder: shards(folder, "other.safetensors"),
    "torn weights": torn,
    "nan": nan,
    "foreign pipeline": index(_class_name="StableDiffusionPipeline"),
    "foreign scheduler": index(scheduler=["diffusers", "PNDMScheduler"]),
    "foreign module": index(scheduler=["os", "system"]),
    "code as network": index(unet=["evil", "UNet2DModel"]),
    "no scheduler": lambda folder: (folder / "scheduler/scheduler_config.json").unlink(),
    "deep json": lambda folder: (folder / "unet/config.json").write_text("[" * 100_000),
    "shapes": config(block_out_channels=[16, 16]),
    "huge": config(block_out_channels=[60_000, 60_000]),
    "absurd": config(block_out_channels=[10**9, 10**9]),
    "layers": config(layers_per_block=10**6),
    "nested": config(block_out_channels=[[8], [16]]),
    "unknown blocks": config(down_block_types=["os.system", "DownBlock2D"]),
    "quantised": config(quantization_config={"quant_method": "bitsandbytes"}),
    "size": config(sample_size=10**6),
    "no size": config(sample_size=None),
    "odd size": config(sample_size=[8, 9]),
    "fourier": config(time_embedding_type="fourier"),
    "identity classes": config(class_embed_type="timestep"),
    "betas": scheduler(beta_schedule="sigmoid"),
    "own betas": scheduler(trained_betas=[0.1] * 1000),
    "zero snr": scheduler(rescale_betas_zero_snr=True),
    "prediction": scheduler(prediction_type="flow"),
    "steps": scheduler(num_train_timesteps=10**12),
    "one step": scheduler(num_train_timesteps=1),
    "text betas": scheduler(beta_start="x"),
    "falling betas": scheduler(beta_start=-0.1, beta_end=0.0),
}


def one_line(folder, key="model.teacher"):
    with pytest.raises(InputError) as error:
        load_model(folder, key)
    assert "\n" not in str(error.value) and str(error.value).startswith(key)
    return str(error.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_run_nothing(tmp_path, unet, name):
    folder = saved(tmp_path / "p", unet, DDPMScheduler())
    load_model(folder)
    HOSTILE[name](folder)
    one_line(folder)
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize(
    "changes",
    [{"sigma_min": 100.0}, {"sigma_data": 0.0}, {"sigma_max": float("inf")}, {"prediction_type": "sample"}],
    ids=str,
)
def test_hostile_edm_settings(tmp_path, unet, changes):
    folder = saved(tmp_path / "p", unet, EDMEulerScheduler())
    edit(folder / "scheduler/scheduler_config.json", **changes)
    one_line(folder)


def test_index_and_size_are_named(tmp_path, unet):
    """The first would be read instead of the weights whose digest is taken, the second would be allocated."""
    for name, said in (("shards", "index"), ("huge", "parameters")):
        folder = saved(tmp_path / name / "p", unet, DDPMScheduler())
        HOSTILE[name](folder)
        assert said in one_line(folder)


def test_a_learned_variance_has_no_ode(tmp_path):
    folder = saved(tmp_path / "p", make_unet(out_channels=2), DDPMScheduler(variance_type="learned"))
    assert "out_channels" in one_line(folder)


def test_a_consistency_model_is_no_teacher(tmp_path, unet):
    folder = saved(tmp_path / "p", unet, CMStochasticIterativeScheduler(), ConsistencyModelPipeline)
    assert "no ODE" in one_line(folder)


RECORD = {
    "role": ["pipeline", None],
    "parameterization": ["ddpm", None],
    "scaling": [{"noise_factor": "x"}, {"evil": 1}, [1]],
    "sigma_min": [0.0, -1.0, 100.0, "x", float("nan")],
    "sigma_max": [float("inf"), None],
    "sampler": [{"solver": "exec", "points": 5}, {"solver": "heun", "points": 10**12}, {}],
    "training_set": [None, {}],
    "digest": ["0" * 64],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in RECORD.items() for v in values], ids=str)
def test_a_record_edited_by_hand(tmp_path, unet, key, value):
    """What a foreign folder would say of itself, as cdmem.json; then one value at a time is spoilt."""
    from cdmem.networks.unet import UNetNetwork

    unet.save_pretrained(tmp_path / "unet")
    record = {"role": "teacher", "parameterization": "edm", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    record |= {"scaling": None, "sampler": {"solver": "heun", "points": 5}, "sampling_seed": 0, "step": 3}
    record |= {"digest": weights_digest(UNetNetwork(unet)), "training_set": {"hash": "ab", "status": "recorded"}}
    (tmp_path / "cdmem.json").write_text(json.dumps(record))
    assert load_model(tmp_path).record.training_set == "ab"
    (tmp_path / "cdmem.json").write_text(json.dumps(record | {key: value}))
    one_line(tmp_path)


def test_a_network_record_holds_plain_values_only():
    config = dict(make_unet().config)
    made = from_record({"class_path": "cdmem.networks.DiffusersUNet", "init_args": {"config": config}})
    assert made.record() == from_record(made.record()).record()
    assert made.build((1, 8, 8), 0, 0).unet.config.block_out_channels == [8, 16]
    for shape, classes in (((3, 8, 8), 0), ((1, 16, 16), 0), ((1, 8, 8), 5)):
        with pytest.raises(InputError, match="does not fit"):
            made.build(shape, classes, 0)
    for bad in (
        {"act_fn": {"evil": 1}},
        {"dropout": "x" * 1000},
        {"norm_eps": float("nan")},
        {"layers_per_block": 1000},
    ):
        with pytest.raises(InputError):
            DiffusersUNet(config | bad)
    with pytest.raises(InputError):
        DiffusersUNet(["not", "a", "mapping"])
