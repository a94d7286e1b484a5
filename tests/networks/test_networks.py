"""Networks: shapes, classes, seeds, what is refused, and the way to diffusers and back."""

from __future__ import annotations

import pytest
import torch

import support
from cdmem import networks
from cdmem.errors import InputError
from cdmem.networks.diffusers import load_diffusers, save_diffusers
from cdmem.networks.mlp import MLP
from cdmem.networks.unet import UNet

SMALL = {"channels": [8, 16], "layers": 1, "norm_groups": 4}
CONFIGS = [UNet(**SMALL), UNet(**SMALL, attention=[4]), UNet(**SMALL, attention=[8]), MLP(width=16, depth=1)]
EACH = pytest.mark.parametrize("config", CONFIGS, ids=["unet", "unet-attention-low", "unet-attention-high", "mlp"])


def inputs(count=2, shape=(1, 8, 8)):
    return torch.randn(count, *shape, generator=support.rng()), torch.linspace(-1500, 1000, count)


@EACH
@pytest.mark.parametrize("channels", [1, 3])
def test_output_has_the_shape_of_the_input_and_is_zero_at_first(config, channels):
    network = config.build((channels, 8, 8), 0, 0)
    out = network(*inputs(shape=(channels, 8, 8)))
    assert torch.equal(out, torch.zeros(2, channels, 8, 8))


@EACH
def test_weights_are_a_function_of_the_seed_alone(config):
    torch.manual_seed(0)
    one = support.flat_weights(config.build((1, 8, 8), 0, 5))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    two = support.flat_weights(config.build((1, 8, 8), 0, 5))
    assert torch.equal(torch.get_rng_state(), before), "building leaves the global stream alone"
    assert torch.equal(one, two)
    assert not torch.equal(one, support.flat_weights(config.build((1, 8, 8), 0, 6)))


@EACH
def test_output_depends_on_input_time_and_label(config):
    network = support.scramble(config.build((1, 8, 8), 4, 0)).eval()
    x, c = inputs()
    labels = torch.tensor([0, 3])
    base = network(x, c, labels)
    assert base.isfinite().all()
    for other in (network(x + 1, c, labels), network(x, c + 40, labels), network(x, c, labels.flip(0))):
        assert not torch.allclose(base, other)


def test_fractional_noise_levels_are_told_apart():
    """c_noise must arrive as a float tensor: diffusers truncates a Python number to an integer."""
    network = support.scramble(UNet(**SMALL).build((1, 8, 8), 0, 0)).eval()
    x, _ = inputs()
    a, b = (network(x, torch.full((2,), v)) for v in (10.2, 10.8))
    assert not torch.equal(a, b)
    negative = network(x, torch.full((2,), -1553.65))  # 250 ln 0.002
    assert negative.isfinite().all()


def test_samples_do_not_mix():
    for config in CONFIGS:
        network = support.scramble(config.build((1, 8, 8), 0, 0)).eval()
        x, c = inputs()
        other = torch.cat([x[:1], x[1:] * -3])
        # Not bit for bit: other batches may be summed in another order.
        torch.testing.assert_close(network(x, c)[0], network(other, c)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "sides", "key"),
    [
        *(
            (UNet(channels=[8] * n), sides, "data.resolution")
            for n, sides in ((2, (7, 8)), (3, (8, 10)), (4, (28, 28)))
        ),
        (UNet(channels=[8, 12], norm_groups=8), (8, 8), "model.network.norm_groups"),
        (UNet(channels=[8], norm_groups=0), (8, 8), "model.network.norm_groups"),
        (UNet(channels=[8], layers=0), (8, 8), "model.network.layers"),
        *((UNet(channels=widths), (8, 8), "model.network.channels") for widths in ([], [8, 0], [8] * 17)),
        (MLP(width=15), (8, 8), "model.network.width"),
    ],
    ids=str,
)
def test_settings_that_make_no_network_are_refused(config, sides, key):
    with pytest.raises(InputError, match=f"^{key}="):
        config.build((1, *sides), 0, 0)


@EACH
def test_a_record_rebuilds_the_config(config):
    rebuilt = networks.from_record(config.record())
    assert rebuilt == config and type(rebuilt) is type(config)
    weights = [support.flat_weights(c.build((1, 8, 8), 3, 1)) for c in (config, rebuilt)]
    assert torch.equal(*weights)


@pytest.mark.parametrize("path", ["os.system", "cdmem.networks.Evil", "cdmem.networks.NetworkConfig", "UNet", None])
def test_a_record_chooses_no_foreign_class(path):
    with pytest.raises(InputError, match=r"^checkpoint\.network="):
        networks.from_record({"class_path": path, "init_args": {}})


def test_diffusers_folder_round_trip(tmp_path):
    network = support.scramble(UNet(**SMALL, attention=[4]).build((1, 8, 8), 3, 0)).eval()
    save_diffusers(network, str(tmp_path))
    names = {p.name for p in tmp_path.iterdir()}
    assert "config.json" in names and any(n.endswith(".safetensors") for n in names)
    assert not any(n.endswith((".bin", ".pt")) for n in names)
    back = load_diffusers(str(tmp_path)).eval()
    x, c = inputs()
    labels = torch.tensor([2, 0])
    assert torch.equal(network(x, c, labels), back(x, c, labels))
    with pytest.raises(InputError, match="is not a UNet2DModel"):
        save_diffusers(MLP(width=16).build((1, 8, 8), 0, 0), str(tmp_path))


def test_rectangular_images():
    network = UNet(**SMALL).build((1, 8, 12), 0, 0)
    assert network(*inputs(shape=(1, 8, 12))).shape == (2, 1, 8, 12)


@pytest.mark.parametrize("config", [UNet(**SMALL, dropout=0.5), MLP(16, 1, dropout=0.5)], ids=["unet", "mlp"])
def test_dropout_acts_in_training_only(config):
    network = support.scramble(config.build((1, 8, 8), 0, 0))
    x, c = inputs()
    network.train()
    assert not torch.equal(network(x, c), network(x, c))
    network.eval()
    assert torch.equal(network(x, c), network(x, c))


@EACH
def test_gradients_reach_every_weight(config):
    network = support.scramble(config.build((1, 8, 8), 2, 0))
    network(*inputs(), torch.tensor([0, 1])).square().sum().backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None]
    assert missing == []
