"""Label dropout: a teacher that also knows "no class", and everything that reads its files."""

from __future__ import annotations

import pytest
import torch

import support
from cdmem.errors import InputError
from cdmem.models.load import load_model
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet
from cdmem.training import teacher as teacher_module
from support.laboratory import succeed

NETWORKS = {"mlp": MLP(width=16, depth=1), "unet": UNet(channels=[4], layers=1, norm_groups=2)}


def make(**options):
    return support.make_teacher(**({"conditional": True, "label_dropout": 0.5} | options))


def trained(module, steps, file=None, **data):
    """On ten classes; saved to ``file``."""
    support.fit(module, steps, support.make_data(balance=True, n=20, **data))
    if file is not None:
        module.trainer.save_checkpoint(file)
    return module


def seen_labels(module, steps, monkeypatch, **data):
    """Labels that the network was trained with, and the noise beside them."""
    found, real = [], teacher_module.denoising_loss

    def spy(denoiser, x0, sigma, eps, weight, labels=None):
        found.append((labels, sigma, eps))
        return real(denoiser, x0, sigma, eps, weight, labels)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_module, "denoising_loss", spy)
        trained(module, steps, **data)
    return found


def test_the_given_share_of_labels_is_dropped_and_nothing_else_changes(monkeypatch):
    plain = seen_labels(make(label_dropout=0.0), 40, monkeypatch, batch_size=16)
    dropped = seen_labels(make(label_dropout=0.25), 40, monkeypatch, batch_size=16)
    for (a, sigma_a, eps_a), (b, sigma_b, eps_b) in zip(plain, dropped, strict=True):
        assert torch.equal(sigma_a, sigma_b) and torch.equal(eps_a, eps_b)
        assert bool(((a == b) | (b == 10)).all()) and int(a.max()) < 10
    labels = torch.cat([b for b, _, _ in dropped])
    # 640 draws: three standard errors are .051.
    assert abs(float((labels == 10).float().mean()) - 0.25) < 0.052


def test_without_dropout_the_model_is_what_it_was():
    """The same record and network as before there was such a setting."""
    module = trained(make(label_dropout=0.0), 1)
    assert module.record.null_label is False and module.raw.network.classes.num_embeddings == 10


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_keeps_the_label_that_means_none(tmp_path, name):
    module = trained(make(network=NETWORKS[name]), 2, tmp_path / "t.ckpt")
    again = load_model(tmp_path / "t.ckpt")
    assert again.num_classes == 10 and again.record.null_label is True
    x, sigma = torch.randn(3, 1, 8, 8, generator=support.rng()), torch.full((3,), 0.7)
    for label in (0, 10):
        labels = torch.full((3,), label)
        assert torch.equal(again.function()(x, sigma, labels), module.function()(x, sigma, labels))
    # Sampling draws real classes only.
    assert torch.equal(again.sampler()([3, 4]), module.sampler()([3, 4]))


def test_a_student_inherits_it_and_is_read_back(tmp_path):
    trained(make(network=NETWORKS["unet"]), 2, tmp_path / "t.ckpt")
    student = support.make_student(teacher=str(tmp_path / "t.ckpt"), network=None)
    trained(student, 2, tmp_path / "s.ckpt")
    again = load_model(tmp_path / "s.ckpt")
    assert again.record.null_label is True and torch.equal(again.sampler(1)([5]), student.sampler(1)([5]))


def test_an_exported_folder_keeps_it(tmp_path):
    module = trained(make(network=NETWORKS["unet"]), 2, tmp_path / "t.ckpt")
    succeed("export", "--checkpoint", tmp_path / "t.ckpt", "--out", tmp_path / "folder")
    again = load_model(tmp_path / "folder")
    assert again.num_classes == 10 and again.record.null_label is True
    torch.testing.assert_close(again.sampler()([3, 4]), module.sampler()([3, 4]))


@pytest.mark.parametrize("options", [{"conditional": False}, {"label_dropout": 1.0}, {"label_dropout": -0.1}], ids=str)
def test_unusable_settings_are_refused(options):
    with pytest.raises(InputError, match=r"^model\.label_dropout="):
        make(**options)


@pytest.mark.parametrize(("num_classes", "null"), [(10, "yes"), (0, True), (10, False)])
def test_records_that_make_no_sense_are_refused(tmp_path, num_classes, null):
    trained(make(), 1, tmp_path / "t.ckpt")
    state = torch.load(tmp_path / "t.ckpt", weights_only=True)
    state["cdmem"] |= {"num_classes": num_classes, "null_label": null}
    torch.save(state, tmp_path / "t.ckpt")
    with pytest.raises(InputError, match=r"^checkpoint="):
        load_model(tmp_path / "t.ckpt")
