"""A run that stops and goes on is the run that never stopped."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

import support
from cdmem.models.load import load_model
from cdmem.networks.mlp import MLP


def everything(module):
    """All that decides how a run goes on."""
    optimizer = module.optimizers().optimizer.state_dict()
    state = [v for s in optimizer["state"].values() for v in s.values() if isinstance(v, torch.Tensor)]
    rates = torch.tensor([g["lr"] for g in optimizer["param_groups"]], dtype=torch.float64)
    return [*module.state_dict().values(), *state, rates]


@pytest.mark.parametrize(
    ("accumulate", "precision"), [(1, "32-true"), (2, "32-true"), (1, "bf16-mixed"), (1, "16-mixed")]
)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_two_steps_and_two_more_are_four(role, accumulate, precision, tmp_path):
    # Lightning's own plugin, whose float16 runs on a CPU where the flag 16-mixed does not.
    plugins = [] if precision == "32-true" else [MixedPrecision(precision, "cpu")]

    def fresh():
        adam = {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-2), "ema_half_lives": [2, 5], "warmup_steps": 3}
        if role == "teacher":
            return support.make_teacher(network=MLP(width=16, depth=1, dropout=0.3), **adam)
        return support.make_student(mu="adaptive", curriculum="sqrt", points=20, start_points=2, dropout=0.3, **adam)

    def run(ckpt_path=None, **options):
        data = support.make_data(n=10, batch_size=4, flip=True)
        options |= {"accumulate_grad_batches": accumulate, "plugins": plugins}
        return support.fit(fresh(), 4, data, ckpt_path, **options)

    class SaveAtTwo(pl.Callback):
        state = None

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2 and self.state is None:
                trainer.save_checkpoint(tmp_path / "two.ckpt")
                self.state = [v.clone() for v in everything(trainer.lightning_module)]

    save = SaveAtTwo()
    torch.manual_seed(0)
    straight = run(callbacks=[save])
    torch.manual_seed(99)  # a new process has another global stream
    resumed = run(str(tmp_path / "two.ckpt"))
    assert straight.trainer.global_step == resumed.trainer.global_step == 4
    assert all(torch.equal(a, b) for a, b in zip(everything(straight), everything(resumed), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(everything(straight), save.state, strict=True))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_checkpoint_samples_like_the_run_that_wrote_it(role, tmp_path):
    module = support.fit(support.make_teacher() if role == "teacher" else support.make_student(mu=0.5), 2)
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    back = load_model(tmp_path / "x.ckpt")
    assert not back.training and back.record.step == 2
    assert torch.equal(back.sampler()(range(3)), module.sampler()(range(3)))
    assert torch.equal(back.sampler(weights="raw")(range(3)), module.eval().sampler(weights="raw")(range(3)))
