"""The learning rate of a run, planned and changed: constant, its cooldown, and what of it can still move."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

import support
from cdmem.errors import InputError
from cdmem.training.settings import Optimization, Phase, constant_phase, read_phases


def rates(settings, phases, steps):
    return [settings.factor(step, phases) for step in range(steps)]


def constant(cooldown=3, **options):
    return Optimization(schedule="constant", cooldown_steps=cooldown, **options)


def test_the_last_steps_have_a_tenth_of_the_rate():
    settings = constant()
    phases = settings.phases(8)
    assert rates(settings, phases, 9) == [1.0] * 5 + [0.1] * 4
    assert settings.constant_until(8) == 5 and constant_phase(phases) == (0, 5)
    other = constant(2, cooldown_to=0.25, warmup_steps=4)
    assert rates(other, other.phases(6), 6) == [0.25, 0.5, 0.75, 1.0, 0.25, 0.25]


def test_down_to_0_in_a_straight_line():
    settings = constant(4, cooldown_to=0.0)
    assert rates(settings, settings.phases(6), 8) == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_without_a_cooldown_all_is_constant_and_a_cosine_never_is():
    plain = Optimization(schedule="constant")
    assert rates(plain, plain.phases(4), 4) == [1.0] * 4
    assert plain.constant_until(4) == 4 and constant_phase(plain.phases(4)) == (0, 4)
    cosine = Optimization()
    assert cosine.constant_until(4) == 0 and constant_phase(cosine.phases(4)) is None


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"cooldown_steps": 5}, "cooldown_steps"),  # of a cosine, the default
        ({"schedule": "constant", "cooldown_steps": -1}, "cooldown_steps"),
        ({"schedule": "constant", "cooldown_to": 1.0}, "cooldown_to"),
        ({"schedule": "constant", "cooldown_to": -0.1}, "cooldown_to"),
    ],
)
def test_bad_settings(settings, key):
    with pytest.raises(InputError) as error:
        Optimization(**settings)
    assert error.value.key == f"model.optimization.{key}"


def test_a_cooldown_must_fit_into_the_run():
    constant(8).phases(8)
    with pytest.raises(InputError, match="only 8 of 8 steps are left"):
        constant(9).phases(8)
    with pytest.raises(InputError, match="never ends"):
        constant().phases(-1)


# ---- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_cooldown_that_has_not_begun_moves_to_the_new_end(step):
    settings = constant()
    moved = settings.continued(settings.phases(8), step, 12)
    assert moved == settings.phases(12)
    assert settings.continued(moved, step, 12) == moved


def test_a_constant_run_gets_a_cooldown_where_room_for_it_is_left():
    plain, settings = Optimization(schedule="constant"), constant()
    assert settings.continued(plain.phases(8), 8, 11) == settings.phases(11)
    with pytest.raises(InputError, match="only 2 of 10 steps are left at step 8"):
        settings.continued(plain.phases(8), 8, 10)
    # And loses it again.
    assert plain.continued(settings.phases(11), 8, 20) == plain.phases(20)


def test_a_cooldown_that_has_begun_goes_on_as_it_is_or_must_be_told():
    settings, phases = constant(), constant().phases(8)
    for step in (6, 8):
        assert settings.continued(phases, step, 8) == phases
        with pytest.raises(InputError, match="the cooldown began at step 5") as error:
            settings.continued(phases, step, 12)
        assert error.value.key == "trainer.max_steps" and "longer restart" in error.value.hint
        with pytest.raises(InputError, match="the cooldown began at step 5") as error:
            constant(1).continued(phases, step, 8)
        assert error.value.key == "model.optimization.cooldown_steps"


def test_restart_and_constant_at_end():
    again, held = constant(longer="restart"), constant(longer="constant_at_end")
    phases = again.continued(again.phases(8), 8, 14)
    assert rates(again, phases, 14) == [1.0] * 5 + [0.1] * 3 + [1.0] * 3 + [0.1] * 3
    assert constant_phase(phases) == (8, 11)
    assert again.continued(phases, 9, 20)[-2:] == [Phase(8, 17, "constant"), Phase(17, 20, "cooldown")]
    phases = held.continued(held.phases(8), 7, 12)
    assert rates(held, phases, 12) == [1.0] * 5 + [0.1] * 7
    assert constant_phase(phases) == (0, 5)
    assert held.continued(phases, 10, 12) == phases  # a plain resume stays at the rate it had come to
    assert rates(held, held.continued(phases, 12, 15), 15) == [1.0] * 5 + [0.1] * 10
    with pytest.raises(InputError, match="cooldown began"):
        constant().continued(phases, 12, 15)


def test_another_schedule_begins_anew():
    plain, cosine, settings = Optimization(schedule="constant"), Optimization(), constant()
    begun = settings.phases(8)
    assert plain.continued(begun, 7, 12) == [*begun, Phase(7, 12, "constant")]
    assert cosine.continued(begun, 7, 12) == [*begun, Phase(7, 12, "cosine")]
    assert cosine.continued(begun, 4, 12) == [begun[0], Phase(4, 12, "cosine")]
    after = settings.continued(cosine.phases(8), 8, 16)
    assert after == [Phase(0, 8, "cosine"), Phase(8, 13, "constant"), Phase(13, 16, "cooldown")]
    assert constant_phase(after) == (8, 13)


def test_a_schedule_is_read_back():
    phases = constant().phases(8)
    assert read_phases([list(phase) for phase in phases]) == phases
    with pytest.raises(ValueError, match="unpack"):
        read_phases([[1, 2]])


# ---- runs -----------------------------------------------------------------------------------------------------------


def run(steps, cooldown, ckpt_path=None, **trainer):
    made = support.make_student(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    made.optimization = Optimization(made.optimization.optimizer, "constant", cooldown_steps=cooldown)
    return support.fit(made, steps, ckpt_path=ckpt_path, **trainer)


def same(one, other):
    states = [module.state_dict() for module in (one, other)]
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


class Save(pl.Callback):
    """Keeps a checkpoint of every step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def test_a_run_goes_on_to_the_bit_before_its_cooldown_and_in_it(tmp_path):
    straight = run(6, 2, callbacks=[Save(tmp_path)])
    for step in (2, 4, 5):
        assert same(straight, run(6, 2, str(tmp_path / f"{step}.ckpt")))
    assert not same(straight, run(6, 0))
    # Lengthened where it has not begun it is the longer run; where it has, that must be told.
    assert same(run(8, 2), run(8, 2, str(tmp_path / "4.ckpt")))
    with pytest.raises(InputError, match="cooldown began at step 4"):
        run(8, 2, str(tmp_path / "5.ckpt"))
