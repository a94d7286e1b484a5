"""The page of two-gaussians: words, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cdmem.report.charts.curves import Series, curves
from cdmem.theory.curves import Exponent
from cdmem.theory.experiment import KINDS, Figure, Section, Table
from cdmem.theory.two_gaussians.training import STEPS, Run

Law = Mapping[str, Exponent | None]  # of n and width
Trained = tuple[Run, list[float | None]]  # a training, and each member's tau_mem


def least(run: Run) -> dict[str, Any]:
    """Where the mean divergence is smallest."""
    means = np.mean(run.kl, axis=1)
    k = int(means.argmin())
    return {"step": run.steps[k], "kl": float(means[k])}


def _exponents(law: Law) -> str:
    said = []
    for name, exponent in (("n", law["n"]), ("W", law["width"])):
        missing = f"no exponent of {name}: it needs two values of {name} and more onsets than unknowns"
        said.append(missing if exponent is None else f"tau_mem ~ {name}^{exponent}")
    return "; ".join(said)


def lead(law: Law, trained: Sequence[Trained], level: float) -> list[str]:
    """The main numbers."""
    count = sum(tau is not None for _, taus in trained for tau in taus)
    lines = [f"f_mem reaches {level:.0%}: {_exponents(law)} ({count} onsets)."]
    parts = []
    for r, taus in trained:
        kept = [tau for tau in taus if tau is not None]
        when = f"{np.exp(np.mean(np.log(kept))):.0f} steps" if kept else "not reached"
        parts.append(f"n = {r.n}, W = {r.width}: {when} ({len(kept)} of {len(taus)} seeds)")
    return [*lines, "; ".join(parts) + "."]


def _series(trained: Sequence[Trained], key: str, scale: bool = False) -> list[Series]:
    many = len({r.width for r, _ in trained}) > 1
    made = []
    for kind, (r, _) in zip(KINDS, trained):
        values = np.array(getattr(r, key))
        label = f"n = {r.n}" + (f", W = {r.width}" if many else "")
        x = [step * r.width / 128 / r.n if scale else step for step in r.steps]
        ends = (values.min(1).tolist(), values.max(1).tolist()) if values.shape[1] > 1 else (None, None)
        made.append(Series(label, kind, x, values.mean(1).tolist(), *ends))
    return made


def sections(
    trained: Sequence[Trained], law: Law, floor: dict[str, float], level: float, samples: int, loss_step: int
) -> list[Section]:
    """The page's parts."""
    seeds = len(trained[0][1])
    band = f"Mean and range over {seeds} seeds, {samples} samples each."
    words = f"Exact samples of P_0 read KL {floor['kl']:.3f} (sd {floor['kl_sd']:.3f}) and f_mem {floor['f_mem']:.2%}."
    step, share = "optimizer step", "f_mem"
    f_mem = curves("f_mem", _series(trained, "f_mem"), step, share, log_x=True, percent=True, alt="f_mem against steps")
    scaled, per_point = _series(trained, "f_mem", True), "step W / (128 n)"
    alt = "f_mem against steps per training point"
    collapse = curves("f_mem_collapse", scaled, per_point, share, log_x=True, percent=True, alt=alt)
    kl = curves("kl", _late(trained), step, "KL(P_θ | P_0), nats", log_x=True, alt="divergence against steps")
    gap = []
    for train, fresh in zip(_series(trained, "loss_train"), _series(trained, "loss_test")):
        gap.append(Series(train.label, train.kind, train.x, np.subtract(fresh.y, train.y).tolist()))
    losses = curves("loss_gap", gap, step, "test loss - train loss", log_x=True, alt="loss gap against steps")
    head = ("n", "W", "parameters", "steps", f"tau_mem (f_mem = {level:.0%})", "least KL", "last KL")
    rows = []
    for r, taus in trained:
        when = " / ".join("-" if tau is None else f"{tau:.0f}" for tau in taus)
        smallest = f"{least(r)['kl']:.2f} at {least(r)['step']}"
        rows.append(
            (str(r.n), str(r.width), f"{r.size:,}", str(r.steps[-1]), when, smallest, f"{np.mean(r.kl[-1]):.2f}")
        )
    copies = [
        Figure(f_mem, f"{band} The more points, the later they are copied."),
        Figure(
            collapse, "The same in steps per training point and width: where curves fall together, tau_mem ~ n / W."
        ),
        Table(head, rows, "Onsets per seed, interpolated in log step between two measurements."),
    ]
    early = "Earlier measurements, before anything is learned, are in results.json."
    distance = [
        Figure(kl, f"{band} Cross-entropy exact, entropy from nearest neighbours. {early}"),
        Figure(losses, f"At diffusion step {loss_step} of {STEPS}; 5 noise draws, the same at each measurement."),
    ]
    onsets = Section("Copies", [f"{_exponents(law)}."], copies)
    return [onsets, Section("Distance to the true density", [words], distance)]


def _late(trained: Sequence[Trained]) -> list[Series]:
    """The divergence from within four times its least value on: the first steps would hide the rest."""
    made = []
    for s in _series(trained, "kl"):
        y = np.array(s.y, dtype=float)
        k = int((y <= 4 * max(y.min(), 0.5)).argmax())
        made.append(Series(s.label, s.kind, s.x[k:], s.y[k:], s.low and s.low[k:], s.high and s.high[k:]))
    return made
