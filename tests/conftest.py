"""Shared fixtures: no network, no W&B, one thread."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Toy networks are slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def environment_as_before():
    """Lightning's launcher leaves LOCAL_RANK behind: a later run of two processes would wait for one nobody starts."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def away_from_the_checkout(tmp_path, monkeypatch):
    """Default run folders (runs/...) land in the test's own folder."""
    monkeypatch.chdir(tmp_path)
