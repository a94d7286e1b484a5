"""A network of the user's own: what could not be trained, saved and loaded is refused when the model is built."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.errors import InputError
from cdmem.io import own_code
from cdmem.networks import NetworkConfig, from_record
from cdmem.training.teacher import DiffusionTeacher


class Net(nn.Module):
    def __init__(self, shape, width, seed, out=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(shape[0], width, 1)
            self.last = nn.Conv2d(width, out or shape[0], 1)

    def forward(self, x, c_noise, labels=None):
        return self.last(self.first(x) + c_noise[:, None, None, None])


@dataclass
class Good(NetworkConfig):
    """Any plain settings; one that is worked out from another is no argument."""

    width: int = 4
    widths: tuple = (1, 2)
    about: dict = field(default_factory=lambda: {"a": [1, None, "x"], "b": {"c": -1e9}})
    half: int = field(init=False, default=0)

    def __post_init__(self):
        self.half = self.width // 2

    def build(self, shape, num_classes, seed):
        return Net(shape, self.width, seed)


def built(make, name="Built", base=Good, **attributes):
    """A subclass of Good, at the top level of this module, whose network is what ``make`` gives."""
    body = {"build": lambda self, shape, classes, seed: make(shape, classes, seed), "__module__": __name__}
    kind = dataclass(type(name, (base,), body | attributes))
    globals()[name] = kind
    return kind


class Plain(NetworkConfig):
    def __init__(self, width: int = 4):
        self.width = width

    def build(self, shape, num_classes, seed):
        return Net(shape, self.width, seed)


class WithRecord(Plain):
    def record(self):
        return {"class_path": f"{__name__}.WithRecord", "init_args": {"width": self.width}}


class Forgetful(Plain):
    def record(self):
        return {"class_path": f"{__name__}.Forgetful", "init_args": {}}


class Louder(Plain):
    """Its one setting changes no weight."""

    def record(self):
        return {"class_path": f"{__name__}.Louder", "init_args": {}}

    def build(self, shape, num_classes, seed):
        network, gain = Net(shape, 4, seed), self.width
        network.register_forward_hook(lambda module, given, out: gain * out)
        return network


@dataclass
class Inner:
    heads: int = 2


@dataclass
class Nested(Good):
    inner: Inner = field(default_factory=Inner)

    def build(self, shape, num_classes, seed):
        return Net(shape, self.inner.heads, seed)


@dataclass
class WithPath(Good):
    file: Path = Path("weights.pt")


@dataclass
class WithTensor(Good):
    about: dict = field(default_factory=lambda: {"scale": [torch.ones(1)]})


@dataclass
class Doubling(NetworkConfig):
    width: int = 4

    def __post_init__(self):
        self.width *= 2

    build = Good.build


class Outer:
    @dataclass
    class Hidden(Good):
        pass


def without_seed(shape, classes, seed):
    network = Net(shape, 4, 0)
    nn.init.normal_(network.first.weight)
    return network


def with_part(name, part):
    def make(shape, classes, seed):
        network = Net(shape, 4, seed)
        (network.register_buffer if isinstance(part, torch.Tensor) else network.__setattr__)(name, part)
        return network

    return make


def calling(forward):
    def make(shape, classes, seed):
        kind = type("Calling", (Net,), {"forward": forward})
        return kind(shape, 4, seed)

    return make


def infinite_at_one_end(self, x, c_noise, labels=None):
    return Net.forward(self, x, c_noise) * c_noise.exp()[:, None, None, None]


def fails(shape, classes, seed):
    return {}["width"]


REFUSED = {
    "no dataclass": (Plain(), "has no record that a checkpoint could hold"),
    "a path": (WithPath(), r"file is a PosixPath"),
    "a tensor": (WithTensor(), r"about\.scale\.0 is a Tensor"),
    "nested settings": (Nested(), "cannot be built again from its record .*no attribute 'heads'"),
    "a record that forgets": (Forgetful(6), "builds another network .first.bias differs"),
    "a record that forgets what changes no weight": (Louder(2), "builds another network .its output differs"),
    "settings that change when they are made": (Doubling(), "builds another network"),
    "in a class": (Outer.Hidden(), "is not found as .*; define it at the top level"),
    "fails": (built(fails, "Fails")(), r"cannot be built \(KeyError: 'width', test_own_networks.py line \d+\)"),
    "no module": (built(lambda *a: print, "NoModule")(), "build gives a builtin_function"),
    "no weights": (built(lambda *a: nn.Identity(), "NoWeights")(), "has no weights to train"),
    "no seed": (built(without_seed, "NoSeed")(), "has other weights when it is built again"),
    "a lock": (built(with_part("lock", threading.Lock()), "Lock")(), "cannot be copied"),
    "an expanded buffer": (built(with_part("grid", torch.ones(1).expand(9)), "Grid")(), "its state grid"),
    "a lazy layer": (built(with_part("lazy", nn.LazyLinear(4)), "Lazy")(), "its state lazy.weight"),
    "another shape": (built(lambda s, c, k: Net(s, 4, k, 2), "Shape")(), r"returns \[2, 2, 8, 8\]"),
    "a tuple": (built(calling(lambda self, x, c, y=None: (x,)), "Tuple")(), "returns tuple"),
    "two arguments": (built(calling(lambda self, x, c: x), "Two")(), r"cannot be called with .* labels None"),
    "not finite": (built(calling(infinite_at_one_end), "Inf")(), "not finite .c_noise -1553.7 to 1095.5"),
}


@pytest.fixture(scope="module")
def training_set():
    return choose(load_source("digits"), SubsetSpec(n=8))


def prepared(config, training_set, **more):
    teacher = DiffusionTeacher(config, **more)
    teacher.prepare(training_set)
    return teacher


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_training(case, training_set):
    config, said = REFUSED[case]
    with pytest.raises(InputError, match=rf"^model\.network=\S*{type(config).__qualname__}: .*{said}") as error:
        prepared(config, training_set)
    assert "\n" not in str(error.value) and "; " in str(error.value)


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["labels", "null label"])
def test_labels_of_a_conditional_model(dropout, training_set):
    """Every class has a row, and "no class" where guidance needs it."""
    seen = []

    def forward(self, x, c_noise, labels=None):
        seen.append(labels)
        return Net.forward(self, x, c_noise) + self.table(labels)[:, :, None, None]

    def make(rows):
        def build(shape, classes, seed):
            network = calling(forward)(shape, classes, seed)
            network.table = nn.Embedding(rows, 1)
            nn.init.zeros_(network.table.weight)
            return network

        return built(build, "Table")()

    rows = 11 if dropout else 10
    prepared(make(rows), training_set, conditional=True, label_dropout=dropout)
    assert all(labels.tolist() == [0, rows - 1] for labels in seen) and seen
    with pytest.raises(InputError, match=r"^model\.network=\S*Table: cannot be called with .* labels \(B,\)"):
        prepared(make(rows - 1), training_set, conditional=True, label_dropout=dropout)


@pytest.mark.parametrize("config", [Good(), Good(6), WithRecord(6)], ids=["usual", "other", "record"])
def test_a_good_network_is_left_as_it_was_built(config, training_set):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    teacher = prepared(config, training_set)
    assert torch.equal(torch.get_rng_state(), before) and teacher.raw.network.training
    wanted = config.build((1, 8, 8), 0, 0).state_dict()
    found = teacher.raw.network.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[k], found[k]) for k in wanted)
    assert from_record(teacher.record.network).record() == config.record()  # named in this program


def test_a_record_names_code_only_with_consent(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text("raise SystemError('it ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    record = {"class_path": "elsewhere.Net", "init_args": {}}
    with (
        own_code.consent(False),
        pytest.raises(InputError, match=r"elsewhere\.Net: is code of one's own.*--allow_code"),
    ):
        from_record(record)
    with (
        own_code.consent(True),
        pytest.raises(InputError, match=r"cannot be imported \(SystemError: it ran, elsewhere"),
    ):
        from_record(record)


@pytest.mark.parametrize("path", ["os.system", "subprocess.run", "torch.nn.Linear", f"{__name__}.Net", "pathlib.Path"])
def test_only_networks_are_built(path):
    with own_code.consent(True), pytest.raises(InputError, match="is no NetworkConfig"):
        from_record({"class_path": path, "init_args": {}})
    # That Python has it already does not admit it.
    with own_code.consent(False), pytest.raises(InputError, match="--allow_code"):
        from_record({"class_path": path, "init_args": {}})


@pytest.mark.parametrize(
    ("words", "rest", "allowed"),
    [
        ("a --allow_code b", "a b", True),
        ("--allow_code=true", "", True),
        ("--allow_code true --x true", "--x true", True),
        ("--allow_code False a", "a", False),
        ("--allow_code=false", "", False),
        ("--allow_coder", "--allow_coder", False),
        ("--x --allow_code --allow_code=false", "--x", False),
    ],
)
def test_the_flag(words, rest, allowed):
    assert own_code.split_consent(words.split()) == (rest.split(), allowed)
