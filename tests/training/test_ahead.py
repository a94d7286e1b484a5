"""The teacher's half of the next step runs beside the student's half of this one, and changes nothing."""

from __future__ import annotations

import threading

import pytest
import torch

import support
from cdmem.distillation.regression import TrajectoryRegression
from cdmem.errors import InputError
from cdmem.training import ahead as room
from cdmem.training.ahead import Ahead

CPU = torch.device("cpu")


def run(monkeypatch, beside: bool, steps: int = 5, parts: int = 1, **options) -> tuple[torch.Tensor, list[bool]]:
    """Everything that training moves, and of each call of the teacher's half whether it ran beside."""
    monkeypatch.setattr(Ahead, "pays", staticmethod(lambda *_: beside))
    module, calls = support.make_student(**options), []
    real = module.teacher_part

    def told(*arguments):
        calls.append(threading.current_thread() is not threading.main_thread())
        return real(*arguments)

    module.teacher_part = told
    data = support.make_data(n=10, batch_size=6, flip=True)
    support.fit(module, steps, data, accumulate_grad_batches=parts)
    return torch.cat([v.detach().flatten() for v in module.state_dict().values()]), calls


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mu": 0},
        {"mu": "adaptive", "curriculum": "sqrt"},
        {"dropout": 0.3},
        {"method": TrajectoryRegression(points=6)},
    ],
    ids=["target", "no target", "curriculum", "dropout", "regression"],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_to_the_bit(options, parts, monkeypatch):
    one, alone = run(monkeypatch, False, parts=parts, **options)
    two, beside = run(monkeypatch, True, parts=parts, **options)
    assert torch.equal(one, two)
    # Nothing is computed twice or for nothing: the first is made in line, all others beside.
    assert alone == [False] * 5 * parts and beside == [False] + [True] * (5 * parts - 1)


def test_a_resumed_run_is_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(Ahead, "pays", staticmethod(lambda *_: True))
    data = {"n": 10, "batch_size": 6}
    whole, first, rest = (support.make_student(lr_schedule="constant") for _ in range(3))
    support.fit(whole, 6, support.make_data(**data))
    support.fit(first, 3, support.make_data(**data)).trainer.save_checkpoint(tmp_path / "a.ckpt")
    support.fit(rest, 6, support.make_data(**data), ckpt_path=tmp_path / "a.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_what_was_begun_is_taken_once_and_by_its_key():
    work = Ahead(CPU)
    work.begin("a", lambda: 1)
    assert work.take("a") == 1 and work.take("a") is None
    work.begin("a", lambda: 1)
    assert work.take("b") is None and work.take("a") is None
    work.close()


def test_an_error_arrives_where_it_is_taken():
    work = Ahead(CPU)

    def fails():
        raise InputError("model.teacher", "x", "fails", "mend it")

    work.begin("a", fails)
    work.settle()
    with pytest.raises(InputError, match="mend it"):
        work.take("a")
    work.close()


def test_it_runs_under_the_modes_of_the_one_who_began_it():
    work, seen = Ahead(CPU), {}

    def look():
        seen.update(
            grad=torch.is_grad_enabled(), autocast=torch.is_autocast_enabled("cpu"), threads=torch.get_num_threads()
        )

    for grad, autocast in ((True, True), (False, False)):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", enabled=autocast):
            work.begin("a", look)
        work.settle()
        assert seen == {"grad": grad, "autocast": autocast, "threads": torch.get_num_threads()}
    work.close()


def test_settling_waits(monkeypatch):
    work, gate, done = Ahead(CPU), threading.Event(), []
    work.begin("a", lambda: done.append(gate.wait(10)))
    threading.Timer(0.2, gate.set).start()
    work.settle()
    assert done == [True]
    work.close()


@pytest.mark.parametrize(
    ("cores", "threads", "processes", "pays"), [(1, 1, 1, 0), (2, 1, 1, 1), (2, 2, 1, 0), (2, 1, 2, 0), (8, 2, 2, 1)]
)
def test_it_needs_cores_of_its_own(cores, threads, processes, pays, monkeypatch):
    monkeypatch.setattr(room, "cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert Ahead.pays(CPU, processes) is bool(pays)
