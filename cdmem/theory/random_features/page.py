"""The page of the main part: words, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cdmem.report.charts.curves import Series
from cdmem.theory.curves import PowerLaw
from cdmem.theory.experiment import Figure, Section, Table
from cdmem.theory.random_features.charts import ORDER, paths, power_chart, spectrum_chart
from cdmem.theory.random_features.model import Constants, Network
from cdmem.theory.random_features.spectrum import Measured, Spectrum, Theory, shape_of
from cdmem.theory.random_features.sweep import ONSET, Onset, Sweep, least_score


def edges(ends: Sequence[float]) -> str:
    """Edges of an interval."""
    return f"[{ends[0]:.4g}, {ends[1]:.4g}]"


def constants_section(c: Constants) -> Section:
    """The table of constants."""
    names = ("Delta", "a_t", "b_t", "v_t^2", "s_t^2", "|sigma|^2", "mu_1", "mu_0")
    values = (c.Delta, c.a, c.b, c.v2, c.s2, c.norm2, c.mu_1, c.mu_0)
    text = ["Gaussian moments of the activation, eq. (2.7) of Bonnaire et al. 2025, by quadrature to about 1e-12."]
    if abs(c.mu_0) > 1e-9:
        text.append(
            "This activation has a mean: U has one eigenvalue near p mu_0^2 beside the bulks, along the features' mean."
            " v_t^2 and s_t^2 are given after it is taken off, and the bulks are those of the features without it "
            "(assumed: the published theory has mu_0 = 0)."
        )
    row = [f"{value:.6f}" for value in values]
    return Section("Constants", text, [Table(names, [row], f"t = {c.t:g}, sigma_x = {c.sigma_x:.4g}.")])


def spectrum_section(
    s: Network, c: Constants, sigma: np.ndarray, limit: Theory,
    spectrum: Spectrum, measured: Measured, equivalent: Measured,
) -> Section:  # fmt: skip
    """The two bulks and the atom."""
    psi_p = s.p / s.d
    chart, seeds = spectrum_chart(spectrum, limit, c, shape_of(psi_p, s.n / s.d, sigma)), len(spectrum.exact)
    where = f"d = {s.d}, p = {s.p}, n = {s.n}, t = {c.t:g}, {seeds} seed{'s' * (seeds > 1)}"
    caption = (
        f"{where}. Bars: eigenvalues of U; outline: its Gaussian equivalent (2.8); line: the limit (2.9). Shaded: the "
        "intervals of the limit; dotted: the edges of rho_1 by (2.10); bars of the atom are cut off. Two groups of "
        "directions, decades apart: the d at the right are learned first and are the same for every training set, the "
        "others hold the set itself."
    )
    noise = f"Expectations over the noise are exact; truncated series leave less than {spectrum.error:.0e} per entry."
    if spectrum.floor is not None:
        noise = (
            f"Expectations over the noise are means over draws; noise floor {spectrum.floor:.2g} (spectral norm of "
            "half the difference of two halves): eigenvalues below it mean nothing."
        )
    rows = [
        ("generalisation, d largest", edges(limit.rho_2), edges(equivalent.gen), edges(measured.gen)),
        ("memorisation, next n", edges(limit.rho_1), edges(equivalent.mem), edges(measured.mem)),
        ("atom", f"{c.s2:.4g}", f"{equivalent.atom:.4g}", f"{measured.atom:.4g} (median)"),
    ]
    if measured.mean is not None:
        rows.append(("the features' mean", f"{s.p * c.mu_0**2:.4g}", "-", f"{measured.mean:.4g}"))
    head = ("group", "theory", "Gaussian equivalent", "U")
    note = (
        "Theory of rho_2: the solved limit at this psi_n; of rho_1: eq. (2.10). By index, the n eigenvalues after the "
        f"d largest hold {measured.below:.0f} that lie below the left edge of rho_1."
    )
    bulks = [(f"{b.low:.4g}", f"{b.high:.4g}", f"{b.mass:.5f}", f"{b.mass * psi_p:.3f}") for b in limit.bulks]
    names = ("left edge", "right edge", "share", "share p / d")
    split = Table(names, bulks, "All intervals of the limiting density (2.9).")
    text = [noise]
    if limit.memorising is None:
        text.append("At these ratios no gap separates the d largest eigenvalues from the rest.")
    elif limit.memorising > 1:
        text.append(
            "At finite psi_n the solved limit splits what theorem 3.2 calls rho_1: d of its n eigenvalues lie in an "
            "interval of their own, between the atom and the left edge of (2.10). They are the slowest directions that "
            f"V reaches, and are learned at tau = {limit.tau_slow:.0f}, after tau_mem = {limit.tau_mem:.0f}."
        )
    return Section("Spectrum", text, [Figure(chart, caption), Table(head, rows, note), split])


def _ends(values: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Least and largest over seeds of (seeds, ...); no interval with one seed."""
    return (values.min(0), values.max(0)) if len(values) > 1 else (None, None)


def _series(sweep: Sweep, values: np.ndarray, scale: Sequence[float] | None = None) -> list[Series]:
    made = []
    for k, (psi_n, kind) in enumerate(zip(sweep.psi_n, ORDER)):
        x = sweep.tau / (scale[k] if scale else 1.0)
        made.append(Series(f"ψ_n = {psi_n:g}", kind, x.tolist(), values[k].mean(0).tolist(), *_ends(values[k])))
    return made


def training_section(
    sweep: Sweep, where: str, tau_gen: float, tau_mem: Sequence[float], begun: Sequence[Onset], law: PowerLaw | None
) -> Section:
    """Losses, their collapse, score error and its power law."""
    seeds = sweep.train.shape[1]
    means = f"{where}; mean and range over {seeds} seed{'s' * (seeds > 1)}"
    fair = float(sweep.test.mean(1).max()) * 1.05
    time, mark = "training time τ", (tau_gen, "τ_gen")
    losses = paths(
        "losses", _series(sweep, sweep.test), time, "loss: test solid, train dashed", mark,
        dashed=_series(sweep, sweep.train), limits=(0.0, min(fair, 4.0)),
        alt="Train and test loss against training time",
    )  # fmt: skip
    alt = "Generalisation gap against training time"
    gap = paths("gap", _series(sweep, sweep.gap()), time, "L_gen", mark, alt=alt)
    final = sweep.gap()[:, :, -1:].mean(1, keepdims=True)
    collapse = paths("gap_collapse", _series(sweep, sweep.gap() / final, tau_mem), "τ / τ_mem", "L_gen / L_gen(∞)",
                     (1.0, "τ_mem"), alt="The same against training time over tau_mem")  # fmt: skip
    alt = "Score error against training time"
    score = paths("score", _series(sweep, sweep.score), time, "score error", mark, log_y=True, alt=alt)
    rows = []
    least = least_score(sweep)
    for k, psi_n in enumerate(sweep.psi_n):
        ends = " / ".join(f"{losses[k, :, -1].mean():.3f}" for losses in (sweep.train, sweep.test))
        times = (begun[k].onset, begun[k].half)
        reached = ["-" if at is None else f"{at:.0f} ({at / tau_mem[k]:.2f})" for at in times]
        cells = (*reached, f"{begun[k].best:.0f}", ends, f"{least[k].mean():.4f}")
        rows.append((f"{psi_n:g}", f"{tau_mem[k]:.0f}", *cells))
    head = ("psi_n", "tau_mem", f"L_gen = {ONSET} at", "half of L_gen at", "least test loss at", "last train / test",
            "E_score*")  # fmt: skip
    note = (
        f"tau_gen = {tau_gen:.1f} for every psi_n. In brackets: in units of tau_mem. {_spread(begun, tau_mem)} "
        "The edge of a bulk is what its slowest directions need: where psi_n is not far below psi_p, most of the bulk "
        "is learned well before."
    )
    parts: list[Figure | Table] = [
        Figure(losses, f"{means}. First both losses fall together; then the test loss rises and the train loss falls."),
        Figure(gap, f"{means}. L_gen = test - train: larger sets are memorised later."),
        Figure(collapse, f"{means}. Over its last value, in units of tau_mem = psi_p / (Delta lambda_min)."),
        Table(head, rows, note),
        Figure(score, f"{means}. The more points, the lower its minimum near tau_gen."),
    ]
    if law is not None:
        parts.append(_power(sweep, least, law, where))
    text = (
        f"Gradient flow in closed form (2.6), exact expectations (error < {sweep.error:.0e} per entry of U), losses"
        " (2.3) and score error (2.4) without sampling."
    )
    return Section("Training", [text], parts)


def _spread(begun: Sequence[Onset], tau_mem: Sequence[float]) -> str:
    """By which factors the times vary over psi_n."""
    said = []
    for name, key in ((f"L_gen = {ONSET}", "onset"), ("half of L_gen", "half")):
        kept = [(getattr(f, key), mem) for f, mem in zip(begun, tau_mem) if getattr(f, key) is not None]
        if len(kept) > 1:
            plain, scaled = [at for at, _ in kept], [at / mem for at, mem in kept]
            factors = max(plain) / min(plain), max(scaled) / min(scaled)
            said.append(f"{name}: times vary by a factor of {factors[0]:.1f}, in units of tau_mem by {factors[1]:.1f}.")
    return " ".join(said)


def exponent(law: PowerLaw) -> str:
    """The exponent and its interval."""
    ends = "" if law.low is None else f" [{law.low:.3f}, {law.high:.3f}]"
    return f"{law.exponent:.3f}{ends}"


def _power(sweep: Sweep, least: np.ndarray, law: PowerLaw, where: str) -> Figure:
    series = Series("E_score*", "teacher", sweep.psi_n, least.mean(1).tolist(), *_ends(least.T))
    caption = (
        f"{where}, {least.shape[1]} seeds. Fitted: E_score* ~ psi_n^{exponent(law)} (95 % over seeds); published: -.59 "
        "at psi_p = 32, t = .01. The slope changes with psi_n, so that the exponent depends on the range."
    )
    return Figure(power_chart(series, law), caption)
