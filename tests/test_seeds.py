"""Seeds: every draw of a run has a generator of its own, whatever the seed."""

from __future__ import annotations

import pytest
import torch

from cdmem import seeds
from cdmem.diffusion.sampling import NoiseSource
from cdmem.diffusion.step_noise import StepNoise
from cdmem.errors import InputError

RUNS = [0, 1, 4711, 2**32, 2**63 - 1]


@pytest.mark.parametrize("run", RUNS)
def test_no_two_draws_of_a_run_share_a_generator(run):
    """Samples, their labels and noise, 2,000 steps of two parts, epochs, subset and network: all states differ."""
    samples = range(seeds.first_sample(run), seeds.first_sample(run) + 2000)
    states = [seeds.sample_seed(s, stream) for s in samples for stream in ("samples", "labels", "equal_noise")]
    states += [seeds.generator_seed(run, "training", k) for k in range(2000)]
    states += [seeds.generator_seed(run, "dropout", k) for k in range(4000)]
    states += [seeds.generator_seed(run, "order", k) for k in range(500)]
    subset = seeds.generator_seed(run, "subset")
    states += [subset, seeds.duplication_seed(subset), seeds.generator_seed(run, "network")]
    assert len(set(states)) == len(states) and min(states) >= 0 and max(states) < 2**32


def test_a_generator_keeps_all_bits_of_its_seed():
    """torch's CPU generator drops what is above 32 bits: the reason for the layout."""
    draws = [torch.randn(4, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32, 5 + 2**31)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_the_numbers_of_a_stream_are_distinct_beyond_its_end():
    end = seeds.COUNTERS - seeds.start(7, "training")  # where the counter wraps
    states = {seeds.generator_seed(7, "training", k) for k in range(end - 500, end + 500)}
    assert len(states) == 1000 and {s // seeds.COUNTERS for s in states} == {seeds.STREAMS["training"]}


def test_runs_of_other_seeds_share_as_few_samples_as_stated():
    """Blocks of 2^18 samples of 200 runs: the expected overlap of two is (2^18)^2 / 2^29 = 128 samples."""
    size, runs = 2**18, [seeds.first_sample(k) for k in range(200)]
    overlaps = [max(0, size - abs(a - b)) for i, a in enumerate(runs) for b in runs[:i]]
    # The number of overlapping pairs is about Poisson with mean 19,900 x 2 x 2^18 / 2^29 = 19.4; five s.d. are 22.
    assert sum(o > 0 for o in overlaps) < 42
    assert seeds.first_sample(0) == 0 and all(0 <= r <= seeds.COUNTERS - seeds.SAMPLES_PER_RUN for r in runs)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "1"])
def test_seeds_beyond_the_range_are_refused(seed):
    with pytest.raises(InputError, match="2\\^63"):
        seeds.check_seed(seed)


def test_labels_and_noise_of_a_sample_are_unrelated_to_any_other_samples_image():
    """The label of seed 7 once came from the generator of the image of seed 109,542."""
    source = NoiseSource([7], (1, 2, 2))
    other = NoiseSource([7], (1, 2, 2), stream="equal_noise")
    assert not torch.equal(source.next(), other.next())
    assert seeds.sample_seed(7, "labels") >= seeds.COUNTERS > seeds.first_sample(3)


def test_the_hash_keeps_its_parts_apart():
    assert seeds.hash63("a", 1, 23) != seeds.hash63("a", 12, 3)
    assert seeds.hash63("a", 1) == seeds.hash63("a", 1) != seeds.hash63("b", 1)
    assert all(0 <= seeds.hash63(k) < 2**63 for k in range(100))


def test_a_users_own_subset_seed_chooses_what_it_always_did():
    assert seeds.duplication_seed(3) == seeds.hash63("duplication", 3)


def test_noise_of_a_step_is_that_of_its_number():
    first, second = StepNoise(3, 0, 4).normal((2,)), StepNoise(3, 1, 4).normal((2,))
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(seeds.generator_seed(3, "training"))
    assert torch.equal(first, torch.randn(4, 2, generator=generator))
