"""The release gate looks at everything that the table shows; what cannot be measured is said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cdmem.audit.gate import DETECTORS, Detector, detectors, judge_gate
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.metrics.statistics import newcombe_difference, wilson_interval
from support.stages import cdmem, read

COMMON = ["--training_set", "train.npz", "--metrics", "memorization"]
H = ["--held_out", "held.npz"]


def audit(*args: object) -> int:
    return cdmem("audit", "--quiet", *args)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """T, H, and as generators: copies in other forms, and images that nobody trained on."""
    folder = tmp_path_factory.mktemp("gate")
    t = choose(load_source("digits"), SubsetSpec(n=60, seed=2, held_out=1000))
    copies = t.images.repeat(2, 1, 1, 1).float()
    sets = {
        "train": t.images,
        "held": t.held_out_images[:600],
        "fresh": t.held_out_images[600:],
        "copies": copies,
        "brighter": copies * 0.6 + 60,
        "darker": copies * 0.4,
        "moved": copies.flip(-1).roll((1, -1), (-2, -1)),
        "few": t.held_out_images[:98],
    }
    for name, images in sets.items():
        np.savez(folder / f"{name}.npz", images=images.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
    return folder


@pytest.fixture(autouse=True)
def there(files, monkeypatch):
    monkeypatch.chdir(files)


@pytest.mark.parametrize("kind", ["brighter", "darker"])
def test_copies_that_the_ratio_misses_fail(kind, capsys, tmp_path):
    """The table says which copies; f_mem alone passes, by name only."""
    out = tmp_path / "a.json"
    asked = ["--generator", f"{kind}.npz", *COMMON, *H, "--fail_above", 0.06]
    assert audit(*asked, "--out", out) == 1
    printed = capsys.readouterr().out
    lines = [line.split(":")[1] for line in printed.splitlines() if "exceeds 6 %" in line]
    assert [line.split(" copies")[0].strip() for line in lines] == ["tolerant", "HOG"] and "FAILED" in printed
    gate = read(out)["gate"]
    assert gate["failed"] == ["images 0 NFE"] and gate["detectors"] == ["f_mem", "tolerant", "hog"]
    found = {b["detector"]: b for b in gate["bounds"]}
    assert found["f_mem"]["passed"] and not found["hog"]["passed"]
    for name in ("hog", "tolerant"):
        assert not found[name]["passed"] and found[name]["bound"] > found[name]["limit"] == 0.06
    assert audit(*asked, "--gate", "f_mem") == 0
    printed = capsys.readouterr().out
    assert "looked at: f_mem\n" in printed and "only f_mem gates" in printed
    assert audit(*asked, "--gate", "hog") == audit(*asked, "--gate", "tolerant") == 1


def test_mirrored_and_moved_copies_are_seen_by_the_tolerant_detector_alone(capsys, tmp_path):
    out = tmp_path / "a.json"
    assert audit("--generator", "moved.npz", *COMMON, *H, "--fail_above", 0.15, "--out", out) == 1
    assert "tolerant copies (less H's rate)" in capsys.readouterr().out
    record = read(out)
    assert [b["detector"] for b in record["gate"]["bounds"] if not b["passed"]] == ["tolerant"]
    tolerant = record["models"][0]["metrics"]["tolerant_copies"]
    assert tolerant["copied"] == 1 and tolerant["both"] == record["models"][0]["f_mem"]["value"] < 0.1
    assert record["control"]["copycat"]["metrics"]["tolerant_copies"]["copied"] == 1 > 0.02 > tolerant["heldout_rate"]


def test_few_held_out_images_leave_the_tolerant_detector_out(capsys):
    """It cannot be calibrated on them, so it must not be missing either."""
    asked = ["--generator", "copies.npz", *COMMON, "--held_out", "few.npz", "--fail_above", 0.5]
    assert audit(*asked, "--gate", "tolerant") == 2
    assert "gate=tolerant: is calibrated on held-out images, and there are 98; give --held_out with 99" in (
        capsys.readouterr().err
    )
    assert audit(*asked) == 1
    assert "looked at: f_mem, HOG copies\n" in capsys.readouterr().out


def test_without_held_out_images_it_says_that_only_f_mem_looks(capsys):
    assert audit("--generator", "brighter.npz", *COMMON, "--fail_above", 0.06) == 0
    assert "only f_mem gates (without held-out images)" in capsys.readouterr().out


def test_exact_copies_exceed_and_too_few_images_may_exceed(capsys):
    assert audit("--generator", "copies.npz", *COMMON, "--samples", 60, "--fail_above", 0.01) == 1
    assert "f_mem 100 % [94, 100] exceeds 1 %" in capsys.readouterr().out
    assert audit("--generator", "fresh.npz", *COMMON, "--samples", 60, "--fail_above", 0.01) == 1
    assert "f_mem 0 % [0, 6] may exceed 1 %" in capsys.readouterr().out


def test_clean_images_pass_although_calibrated_detectors_fire_on_some(capsys, tmp_path):
    out = tmp_path / "a.json"
    assert audit("--generator", "fresh.npz", *COMMON, *H, "--fail_above", 0.05, "--out", out) == 0
    assert "passed, all below 5 %; the largest upper bound" in capsys.readouterr().out
    record = read(out)
    hog, m = record["models"][0]["metrics"]["copy_detection_hog"], 400
    (bound,) = (b for b in record["gate"]["bounds"] if b["detector"] == "hog")
    counts = round(hog["copied"] * m), m, round(hog["heldout_rate"] * 600), 600
    assert bound["beyond_clean"] and bound["ci95"] == list(newcombe_difference(*counts)[1:])
    assert record["gate"]["failed"] == []


@pytest.mark.parametrize(
    ("words", "error"),
    {
        "--gate hog --fail_above 0.1": "gate=hog: is calibrated on held-out images",
        "--gate hog --fail_above 0.1 --held_out held.npz --metrics copying": "gate=hog: is not measured",
        "--gate efficientnet --fail_above 0.1 --held_out held.npz": "gate=efficientnet: is not measured",
        "--gate nearest --fail_above 0.1": "gate=nearest: is no copy detector",
        "--gate f_mem": "gate=",
    }.items(),
)
def test_a_gate_that_cannot_be_had_is_refused(words, error, capsys):
    assert audit("--generator", "fresh.npz", *COMMON, *words.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"cdmem: error: {error}") and "\n" not in said.err.strip() and not said.out


def test_a_later_detector_is_one_line():
    """With another key, and without calibration."""
    tolerant = Detector("tolerant", "tolerant copies", "tolerant", share="found", clean=None)
    entry = {"samples": 50, "metrics": {"tolerant": {"found": 0.1}}, "f_mem": {"value": 0.0}}
    assert tolerant.copies(entry, 0)[1:] == wilson_interval(5, 50)
    assert len({d.name for d in DETECTORS}) == len(DETECTORS)


def test_a_detector_without_a_number_lets_nothing_pass():
    looked = detectors(["hog"], ["copy_detection_hog"], 9)
    reason = {"copy_detection_hog": {"unavailable": "too few"}}
    entry = {"name": "images", "nfe": 0, "role": "images", "samples": 50, "f_mem": {"value": 0.0}, "metrics": reason}
    gate = judge_gate([entry], 9, looked, 0.5)
    assert gate.failed == ["images 0 NFE"] and "images 0 NFE: no HOG copies (too few)" in "\n".join(gate.lines())


def test_too_few_held_out_images_to_calibrate_are_named():
    def lines(held_out):
        record = {"copy_detection_hog": {"copied": 0.05, "heldout_rate": 0.0}}
        entry = {
            "name": "images",
            "nfe": 0,
            "role": "images",
            "samples": 50,
            "f_mem": {"value": 0.0},
            "metrics": record,
        }
        return "\n".join(judge_gate([entry], held_out, detectors(None, record, held_out), 0.01).lines())

    assert "9 held-out images are few" in lines(9) and "are few" not in lines(99)


def test_newcombes_difference_against_his_table():
    """Newcombe 1998, Statistics in Medicine 17:873, table II, method 10."""
    published = {(56, 70, 48, 80): (0.0524, 0.3339), (9, 10, 3, 10): (0.1705, 0.8090), (10, 10, 0, 20): (0.6791, 1.0)}
    published |= {(6, 7, 2, 7): (0.0582, 0.8062), (5, 56, 0, 29): (-0.0381, 0.1926), (0, 10, 0, 20): (-0.1611, 0.2775)}
    for counts, ends in published.items():
        assert newcombe_difference(*counts)[1:] == pytest.approx(ends, abs=1e-4)


def test_a_clean_generator_is_covered_whatever_h():
    """The threshold lies at an order statistic of H; the upper bound of the excess is 0 or more in 97.5 % of draws."""
    rng = np.random.default_rng(0)
    for h, above in ((60, 0), (300, 2), (1000, 9)):
        rate = stats.beta(above + 1, h - above).rvs(400, random_state=rng)
        bounds = [newcombe_difference(int(rng.binomial(2000, r)), 2000, above, h).high for r in rate]
        assert np.mean(np.array(bounds) >= 0) > 0.95
