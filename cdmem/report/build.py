"""Assembles the page of one run and writes it, its figures and its data, in one go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cdmem.io.atomic import keep_inside, replacing
from cdmem.report import answer, pictures
from cdmem.report import figures as evidence
from cdmem.report.charts.seeds import Chart
from cdmem.report.html import esc, figure
from cdmem.report.run_data import RunData, as_recorded, read_run
from cdmem.report.style import page

PAGE = "report.html"


def write(root: Path, name: str, content: str | bytes) -> None:
    """A file below a folder; a crash leaves the old page or the new one, and no link out of the folder is followed."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    keep_inside(root, path)
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def figures(found: Iterable[tuple[Chart, str]], kept: list[Chart]) -> str:
    """Charts with captions as HTML; the charts are remembered for their PNG and CSV files."""
    parts = []
    for chart, caption in found:
        kept.append(chart)
        links = f' <a href="report/{chart.name}.png">PNG</a> <a href="report/{chart.name}.csv">CSV</a>'
        parts.append(figure(chart.svg(), caption, links))
    return "".join(parts)


def section(anchor: str, title: str, *parts: str) -> str:
    """A section; nothing where all its parts are empty."""
    body = "".join(parts)
    return f'<section id="{anchor}"><h2>{esc(title)}</h2>{body}</section>' if body else ""


SECTIONS = (
    ("training", "Along training"),
    ("seeds", "Seed by seed"),
    ("pictures", "Pictures"),
    ("distributions", "Distributions"),
    ("confounds", "What could confound the answer"),
    ("made", "How it was made"),
)


def render(run: RunData) -> tuple[str, list[Chart]]:
    """The page of a run and its charts."""
    kept: list[Chart] = []
    title = f"{esc(run.path.resolve().name)}: does the student keep its teacher's memorised images?"
    bodies = {
        "training": figures(evidence.along_training(run), kept),
        "seeds": figures(evidence.pairs(run), kept),
        "pictures": _pictures(run),
        "distributions": figures(evidence.distributions(run), kept) + _second(run),
        "confounds": answer.confounds(run) if run.students else "",
        "made": answer.made(run),
    }
    links = "".join(f'<a href="#{key}">{esc(text)}</a>' for key, text in SECTIONS if bodies[key])
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="lead">{esc(answer.headline(run))}</p>',
        answer.verdicts(run),
        f"<nav>{links}</nav>",
        answer.models_table(run),
        *(section(key, text, bodies[key]) for key, text in SECTIONS),
    ]
    return page(title, "\n".join(p for p in parts if p)), kept


def _pictures(run: RunData) -> str:
    parts = (
        ("The same seeds", pictures.same_seeds(run)),
        ("Most-hit training images", pictures.most_hit(run)),
        ("Samples nobody chose", pictures.random_samples(run)),
    )
    return "".join(f"<h3>{esc(title)}</h3>{body}" for title, body in parts if body)


def _second(run: RunData) -> str:
    body = answer.second_opinions(run)
    return f"<h3>Second opinions</h3>{body}" if body else ""


def write_report(path: str | Path) -> Path:
    """Write ``report.html`` into a run's folder, figures (PNG) and data (CSV) into ``report/`` beside it.

    Raises:
        InputError: no finished study there.
    """
    run = read_run(path)
    with as_recorded(run.path):
        html, kept = render(run)
        files = {
            f"report/{c.name}.{kind}": content for c in kept for kind, content in (("png", c.png()), ("csv", c.csv()))
        }
    for name, content in files.items():
        write(run.path, name, content)
    write(run.path, PAGE, html)
    return run.path / PAGE
