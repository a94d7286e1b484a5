"""``model.compile``: the networks of the loss run compiled, and nothing else changes."""

from __future__ import annotations

import copy
import shutil
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

import support
from cdmem.errors import InputError
from cdmem.models.load import load_model
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet
from cdmem.training import compile as compilation

ROLES = pytest.mark.parametrize("role", ["teacher", "student"])
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


class Program:
    """Stands in for the compiled program: counts its calls."""

    def __init__(self, network):
        self.call, self.calls = network._call_impl, 0

    def __call__(self, *args):
        self.calls += 1
        return self.call(*args)


@pytest.fixture
def programs(monkeypatch):
    """No compiler needed: torch.compile replaced by something that only counts."""
    made = []

    def fake(self, *args, **options):
        assert options == {"options": {"fallback_random": True}}
        made.append(Program(self))
        self._compiled_call_impl = made[-1]

    monkeypatch.setattr(nn.Module, "compile", fake)
    return made


class Sampling(pl.Callback):
    """Samples of all weights while it trains, as an evaluation makes them."""

    def __init__(self):
        self.images = []

    def on_train_batch_end(self, trainer, module, *_):
        module.eval()
        self.images += [module.sampler(weights=w)(range(3)) for w in ("raw", "ema_2")]
        if module.role == "student":
            self.images.append(module.teacher_sampler()(range(3)))
        module.train()


def from_teacher(path, **options):
    return support.make_student(teacher=str(path), network=None, mu=0.5, **options)


def test_only_the_networks_of_the_loss_are_compiled(programs, teacher_file):
    made = support.fit(from_teacher(teacher_file, compile=True), 3, callbacks=[Sampling()])
    # Three steps: the student once each, its target once, the teacher twice (Heun); samples use none of them.
    assert [p.calls for p in programs] == [3, 3, 6]
    assert made.raw.network._compiled_call_impl and made.target._compiled_call_impl
    for network in (*made.ema.copies, made.teacher_denoiser.network, made.function("raw").network):
        assert network._compiled_call_impl is None
    assert all(a is b for a, b in zip(made.function("raw").parameters(), made.raw.parameters(), strict=True))
    teacher = support.fit(support.make_teacher(compile=True), 3, callbacks=[Sampling()])
    assert [p.calls for p in programs[3:]] == [3] and teacher.raw.network._compiled_call_impl


@ROLES
def test_checkpoints_and_copies_do_not_know_of_it(role, teacher_file, tmp_path, programs):
    keys = []
    for compiled in (False, True):
        new = support.make_teacher if role == "teacher" else partial(from_teacher, teacher_file)
        made = support.fit(new(compile=compiled), 2)
        assert bool(programs) == compiled
        keys.append(list(made.state_dict()))
        made.trainer.save_checkpoint(tmp_path / "x.ckpt")
        back = load_model(str(tmp_path / "x.ckpt"))
        assert torch.equal(back.sampler(weights="raw")(range(3)), made.eval().sampler(weights="raw")(range(3)))
        assert copy.deepcopy(made.raw.network)._compiled_call_impl is None
    assert keys[0] == keys[1]


def test_an_analytic_teacher_needs_no_compiling(programs):
    support.fit(support.make_student(mu=0.0, compile=True), 2)
    assert [p.calls for p in programs] == [4]  # the student is its own target


def test_without_a_compiler_it_is_refused_before_anything_else(monkeypatch):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"^model\.compile=.*no C\+\+ compiler"):
        support.make_teacher(compile=True)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="Triton"):
        support.make_teacher(compile=True)


# ---- with a real compiler -------------------------------------------------------------------------------------------

NETWORKS = {"mlp": MLP(width=16, depth=1, dropout=0.3), "unet": UNet(channels=[8], layers=1, dropout=0.3)}


class Losses(pl.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.values.append(float(outputs["loss"]))


def distil(teacher, steps=6, ckpt_path=None, dropout=0.3, **options):
    seen, samples = Losses(), Sampling()
    made = from_teacher(teacher, dropout=dropout, lr_schedule="constant", **options)
    support.fit(made, steps, None, ckpt_path, callbacks=[seen, samples])
    return made, seen.values, samples.images


def near(a, b):
    """Two programs for one formula: some float32 roundings apart, fed back through the steps."""
    return float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


@pytest.mark.slow
@pytest.mark.sensitive
@needs_compiler
@pytest.mark.parametrize("network", list(NETWORKS))
def test_compiled_runs_follow_uncompiled_ones(network, tmp_path):
    """Teacher and student, dropout on: equal masks, or the losses would differ in the first digits."""
    torch._dynamo.reset()
    options = {"network": NETWORKS[network], "optimizer": lambda p: torch.optim.SGD(p, lr=0.05)}
    teachers = []
    for compiled in (False, True):
        seen = Losses()
        made = support.fit(support.make_teacher(compile=compiled, **options), 6, callbacks=[seen])
        made.trainer.save_checkpoint(tmp_path / f"{compiled}.ckpt")
        teachers.append((made, seen.values))
    assert teachers[1][1] == pytest.approx(teachers[0][1], rel=1e-4)
    students = [distil(tmp_path / "False.ckpt", compile=compiled) for compiled in (False, True)]
    assert students[1][1] == pytest.approx(students[0][1], rel=1e-4)
    for plain, fast in (teachers, students):
        assert list(plain[0].state_dict()) == list(fast[0].state_dict())
        assert near(support.flat_weights(fast[0]), support.flat_weights(plain[0]))
    plain, fast = (support.flat_weights(made) for made, *_ in students)
    assert not torch.equal(plain, fast), "was it compiled?"
    assert all(near(a, b) for a, b in zip(students[1][2], students[0][2], strict=True))
    # The frozen teacher is measured uncompiled: the same bits.
    assert torch.equal(students[0][2][2], students[1][2][2])


@pytest.mark.slow
@needs_compiler
def test_resume_compiled_and_uncompiled(teacher_file, tmp_path):
    """Compiled to compiled is exact; a run may go on with the other kind, up to rounding."""
    torch._dynamo.reset()
    distil(teacher_file, steps=3, compile=True)[0].trainer.save_checkpoint(tmp_path / "three.ckpt")
    straight = distil(teacher_file, compile=True)[0]
    resumed, crossed = (
        distil(teacher_file, ckpt_path=str(tmp_path / "three.ckpt"), compile=c)[0] for c in (True, False)
    )
    states = [m.state_dict().values() for m in (straight, resumed, crossed)]
    assert all(torch.equal(a, b) for a, b in zip(*states[:2], strict=True))
    assert all(near(a, b) for a, b in zip(states[0], states[2], strict=True) if a.numel())


@pytest.mark.slow
@needs_compiler
def test_compiled_in_low_precision():
    torch._dynamo.reset()
    weights = []
    for compiled in (False, True):
        made = support.make_student(mu=0.5, compile=compiled, lr_schedule="constant")
        support.fit(made, 4, precision="bf16-mixed")
        assert all(p.dtype == torch.float32 for p in made.parameters())
        weights.append(support.flat_weights(made.raw.network))
        x, lowest = torch.randn(3, 1, 8, 8, generator=support.rng()), torch.full((3,), made.sigma_min)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(made.raw(x, lowest), x)
    assert float((weights[0] - weights[1]).norm()) < 0.02 * float(weights[0].norm())
