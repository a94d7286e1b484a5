"""Untrusted checkpoints: pickles, archives that claim to be huge, torn and foreign files. Nothing of them runs."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from cdmem.errors import InputError
from cdmem.io import torch_archive
from cdmem.training import checkpoint
from support.hostile import PICKLES, object_array
from support.untrusted import exits

LAST = "checkpoints/last.ckpt"
RESUMED = "--ckpt_path x.ckpt --trainer.enable_progress_bar false --threads 1"
# The command, the file that it reads and the key that is named.
COMMANDS = {
    "sample": ("sample --checkpoint x.ckpt --out o.npz", "x.ckpt", "checkpoint"),
    "export": ("export --checkpoint x.ckpt --out exported", "x.ckpt", "checkpoint"),
    "generator": ("audit --generator x.ckpt --training_set run/teacher", "x.ckpt", "generator"),
    "audited teacher": (
        "audit --generator run/student --training_set run/teacher --teacher x.ckpt", "x.ckpt", "teacher"
    ),
    "audited run": ("audit --generator run --training_set run/teacher", f"run/student/{LAST}", "generator"),
    "ckpt_path": (f"fit --config own.yaml --run_dir new {RESUMED}", "x.ckpt", "ckpt_path"),
    "validate": (f"validate --config own.yaml --run_dir new {RESUMED}", "x.ckpt", "ckpt_path"),
    "predict": (f"predict --config own.yaml --run_dir new {RESUMED}", "x.ckpt", "ckpt_path"),
    "resume": ("fit --config own.yaml --run_dir run/teacher", f"run/teacher/{LAST}", "ckpt_path"),
    "teacher": ("fit --config student.yaml --run_dir n --model.teacher x.ckpt", "x.ckpt", "model.teacher"),
    "study": ("study --config study.yaml --run_dir run", f"run/teacher/{LAST}", ""),
    "plan": ("plan --config student.yaml --model.teacher x.ckpt", "x.ckpt", "model.teacher"),
}  # fmt: skip


class Claims:
    """Four numbers that claim to be more, or a bytearray."""

    def __init__(self, *size, stride=0):
        self.size, self.stride = size, (stride,) * len(size)

    def __reduce__(self):
        if not self.size:
            return bytearray, (10**12,)
        storage = torch.zeros(4).untyped_storage()
        four = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (four, 0, self.size, self.stride, False, {})


def recorded(**changes):
    return lambda file, song, good: torch.save(good | {"cdmem": good["cdmem"] | changes}, file)


def network(name="MLP", **init):
    usual = {"width": 16, "depth": 1} if name == "MLP" else {"channels": [8]}
    return recorded(network={"class_path": f"cdmem.networks.{name}", "init_args": usual | init}, shape=[1, 8, 8])


def holding(**parts):
    return lambda file, song, good: torch.save(good | parts, file)


def over_a_weight(file, song, good):
    weights = good["state_dict"] | {"raw.network.inputs.weight": Claims(10**6, 10**6)}
    torch.save(good | {"state_dict": weights}, file)


def compressed(part):
    """50 MB of zeros in one part, deflated."""

    def make(file, song, good):
        torch.save(good, stream := io.BytesIO())
        with zipfile.ZipFile(stream) as parts, zipfile.ZipFile(file, "w") as archive:
            top = parts.namelist()[0].split("/")[0]
            for name in [*parts.namelist(), *([f"{top}/extra"] if part == "extra" else [])]:
                huge = name.split("/", 1)[1] == part
                kind = zipfile.ZIP_DEFLATED if huge else zipfile.ZIP_STORED
                archive.writestr(name, bytes(50 * 2**20) if huge else parts.read(name), kind)

    return make


def outside(file, song, good):
    torch.save({"cdmem": {}, "state_dict": {}}, file)
    with zipfile.ZipFile(file, "a") as parts:
        parts.writestr(f"{parts.namelist()[0].split('/')[0]}/../../up", b"x")


def torn(file, song, good):
    torch.save(good, file)
    file.write_bytes(file.read_bytes()[:1000])


MID = {"solver": "consistency", "points": 18, "mid_sigmas": [1.0] * 10**5}
FILES = {
    **PICKLES,
    "width": network(width=60_000),
    "wider": network(width=10**9),
    "depth": network(depth=10**9),
    "channels": network("UNet", channels=[60_000] * 3),
    "levels": network("UNet", channels=[8] * 10**5),
    "layers": network("UNet", layers=10**9),
    "side": recorded(shape=[3, 4096, 4096]),
    "classes": recorded(num_classes=10**9),
    "averages": recorded(half_lives=[1] * 10**5),
    "points": recorded(sampler={"solver": "heun", "points": 10**9}),
    "steps": recorded(role="student", sampler=MID),
    "bytearray": holding(callbacks=Claims()),
    "beyond": holding(callbacks=Claims(10**10, stride=1)),
    "optimizer": holding(optimizer_states=[{"state": {0: {"exp_avg": Claims(10**6, 10**6)}}}]),
    "stride 0": over_a_weight,
    "compressed tensor": compressed("data/0"),
    "compressed structure": compressed("data.pkl"),
    "compressed extra": compressed("extra"),
    "unusual names": outside,
    "torn": torn,
    "no cdmem": lambda file, song, good: torch.save({"weights": torch.zeros(2)}, file),
}
SAID = {"unusual names": "unusual names", "no cdmem": "cdmem"} | {n: "compressed" for n in FILES if "compressed" in n}
# Every form through one command; every command with the form that looks most like a checkpoint; where each is opened.
CASES = [("sample", form) for form in FILES] + [(c, "in_archive") for c in COMMANDS if c != "sample"]
CASES += [("resume", "in_optimizer"), ("resume", "in_averages"), ("study", "old_format"), ("teacher", "in_record")]
CASES += [("teacher", "torn"), ("teacher", "no cdmem"), ("generator", "bare")]


@pytest.mark.parametrize(("command", "form"), CASES)
def test_untrusted_checkpoints(command, form, trained, place, song, refuse):
    args, target, key = COMMANDS[command]
    for other in place.glob("run/*/checkpoints/previous.ckpt"):
        other.unlink()
    (place / target).unlink(missing_ok=True)
    FILES[form](place / target, song, trained.student if "student" in target else trained.teacher)
    refuse(args, key, SAID.get(form, ""))


def test_the_song_is_heard_where_nothing_is_confined(trained, tmp_path, song):
    """Otherwise the tests of this folder would prove nothing."""
    file = tmp_path / "x.ckpt"
    for name in PICKLES.keys() - {"second_structure"}:
        PICKLES[name](file, song, trained.teacher)
        with contextlib.suppress(pickle.UnpicklingError):
            if name in ("bare", "legacy_before_archive"):
                pickle.loads(file.read_bytes())
            else:
                torch.load(io.BytesIO(file.read_bytes()), weights_only=False)
        assert song.mark.exists(), name
        song.mark.unlink()
    np.load(object_array(tmp_path / "x.npy", song), allow_pickle=True)
    assert song.mark.exists()
    song.mark.unlink()


def test_each_of_the_two_gates_holds_alone(trained, tmp_path, song, monkeypatch):
    """The look into the archive, and torch's own unpickler."""
    file = tmp_path / "x.ckpt"
    PICKLES["in_archive"](file, song, trained.teacher)
    with pytest.raises(ValueError, match="exec"):
        torch_archive.check_archive(file)
    monkeypatch.setattr(checkpoint, "check_archive", lambda file: None)
    with pytest.raises(InputError, match="Weights only load failed"):
        checkpoint.read_checkpoint(file)


def test_our_own_checkpoints_pass(trained, place, capsys):
    for name in ("teacher", "student"):
        torch_archive.check_archive(place / f"run/{name}/{LAST}")
    assert exits(["sample", "--checkpoint", "run/student", "--samples", 2, "--out", "o.npz"], capsys)[0] == 0
    values = {"a": torch.Size([1]), "b": {1, 2}, "c": torch.float16, "d": b"x", "e": torch.ones(2).bfloat16()}
    values |= {"f": torch.nn.Parameter(torch.ones(1)), "g": 1j, "h": torch.device("cpu")}  # of somebody's own callback
    torch.save(trained.teacher | {"callbacks": {"Mine": values}}, place / "x.ckpt")
    assert checkpoint.read_checkpoint(place / "x.ckpt")["callbacks"]["Mine"]["b"] == {1, 2}
