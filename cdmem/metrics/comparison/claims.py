"""The table of now x limit: which claim a student's difference to its teacher now and in the limit allow.

Equivalence is asked first: more data never turn a difference within the margin into a claim of a change.
"""

from __future__ import annotations

from typing import Literal

MARGIN = 0.03  # of the difference now: 2,000 seeds tell 3 points apart
LIMIT_MARGIN = 0.05  # of its limit, whose interval also holds the choice of the law
STAYS = 0.5  # of what is seen now; a difference of which more stays in the limit is not transient
State = Literal["equivalent", "below", "above", "unclear"]
Claim = Literal["reduced", "transient", "unchanged", "amplified", "undecided"]

CERTAIN: dict[tuple[State, State], Claim] = {
    ("below", "below"): "reduced",
    ("below", "equivalent"): "transient",
    ("equivalent", "equivalent"): "unchanged",
    ("above", "above"): "amplified",
}
NOW: dict[State, str] = {
    "equivalent": "unchanged now",
    "below": "reduced now",
    "above": "amplified now",
    "unclear": "the difference now is unclear",
}
LIMIT: dict[State, str] = {
    "equivalent": "not in the limit",
    "below": "reduced in the limit",
    "above": "amplified in the limit",
    "unclear": "limit unclear",
}


def state(ci90: tuple[float, float], ci95: tuple[float, float], margin: float) -> State:
    """Where a difference lies.

    Args:
        ci90: its 90 % interval; equivalence is two one-sided tests at 5 %.
        ci95: its 95 % interval.
        margin: of equivalence, > 0.

    Returns:
        ``equivalent``: ci90 within +-margin; else ``below`` or ``above`` where ci95 excludes 0; else ``unclear``.
    """
    if -margin <= ci90[0] and ci90[1] <= margin:
        return "equivalent"
    if ci95[1] < 0:
        return "below"
    return "above" if ci95[0] > 0 else "unclear"


def claim(now: State, limit: State | None, why: str = "", stays: float = 0.0) -> tuple[Claim, str]:
    """The claim, and the reason where it is ``undecided`` (else empty).

    Args:
        now: state of the difference at the last evaluation.
        limit: state of the limit; None where no limit can be given.
        why: why not.
        stays: limit over the difference now, of the values.
    """
    if limit is None:
        return "undecided", f"no limit can be given: {why}" if why else "no limit can be given"
    if (now, limit) == ("below", "equivalent") and stays > STAYS:  # the margins differ: -4 points now, -3 in the limit
        return "undecided", f"reduced now, and {100 * stays:.0f} % of it stays in the limit"
    if (now, limit) in CERTAIN:
        return CERTAIN[now, limit], ""
    if limit == "equivalent" and now == "unclear":
        return "undecided", f"{NOW[now]}, unchanged in the limit"
    joint = ", but " if limit != "unclear" else ", "
    return "undecided", f"{NOW[now]}{joint}{LIMIT[limit]}"
