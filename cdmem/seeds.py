"""Random streams: every draw belongs to a named stream and a number in it, as a function of a run's seed.

torch's CPU generator keeps 32 bits of its seed. They are divided: the upper three name the stream, the lower 29 are a
start that the run's seed chooses by the one hash here, plus a counter. Within a run no two draws share a generator:
their streams or, below 2^29 numbers, their counters differ. Between two runs of other seeds the starts are independent
and uniform, so of N and M numbers of one stream N M / 2^29 are expected to coincide: .007 for two times 2,000 samples.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal

from cdmem.errors import InputError

Stream = Literal["samples", "labels", "equal_noise", "training", "dropout", "order", "subset", "network"]
STREAMS: dict[Stream, int] = {
    "samples": 0,
    "labels": 1,
    "equal_noise": 2,
    "training": 3,
    "dropout": 4,
    "order": 5,
    "subset": 6,
    "network": 7,
}
COUNTERS = 2**29  # numbers of a stream
SAMPLES_PER_RUN = 2**20
LIMIT = 2**63  # --seed


def check_seed(seed: int, key: str = "seed") -> int:
    """The seed.

    Raises:
        InputError: it is not from 0 to 2^63 - 1.
    """
    if type(seed) is not int or not 0 <= seed < LIMIT:
        raise InputError(key, seed, "must be a whole number from 0 to 2^63 - 1", "e.g. 1")
    return seed


def hash63(*parts: int | str) -> int:
    """A 63-bit number from a purpose and numbers."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@lru_cache(maxsize=64)
def start(seed: int, stream: Stream) -> int:
    """Where a run's numbers of a stream begin: uniform below 2^29."""
    return hash63(stream, seed) % COUNTERS


def generator_seed(seed: int, stream: Stream, number: int = 0) -> int:
    """What a generator is seeded with for one number of a run's stream, below 2^32."""
    return STREAMS[stream] * COUNTERS + (start(seed, stream) + number) % COUNTERS


def first_sample(seed: int) -> int:
    """First sample seed of a run; its samples are the SAMPLES_PER_RUN numbers from there.

    Sample seeds are what people see: the start of seed 0 is 0, and no block runs over the end of the stream.
    """
    blocks = COUNTERS - SAMPLES_PER_RUN
    return (start(check_seed(seed), "samples") - start(0, "samples")) % blocks


def sample_seed(sample: int, stream: Stream) -> int:
    """What a generator is seeded with for a stream of one sample; ``samples`` is the sample seed itself."""
    return STREAMS[stream] * COUNTERS + sample % COUNTERS


def duplication_seed(subset_seed: int) -> int:
    """What the generator is seeded with that picks the duplicated images of a subset.

    Args:
        subset_seed: as derived from a run's seed (a number of the stream ``subset``), or any number that a user gave;
            the second kind is hashed, as it always was.
    """
    if subset_seed // COUNTERS == STREAMS["subset"]:
        return STREAMS["subset"] * COUNTERS + (subset_seed + 1) % COUNTERS
    return hash63("duplication", subset_seed)
