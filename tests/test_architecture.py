"""The house keeps its floors: a file imports only from its own floor or below."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS: dict[str, int] = {
    "cdmem": 0,
    "cdmem.errors": 0,
    "cdmem.arrays": 0,
    "cdmem.texts": 0,
    "cdmem.paths": 0,
    "cdmem.quiet": 0,
    "cdmem.durable": 0,
    "cdmem.redact": 0,
    "cdmem.trust": 0,
    "cdmem.run": 0,
    "cdmem.images": 0,
    "cdmem.networks": 1,
    "cdmem.diffusion": 0,
    "cdmem.diffusion.noise": 1,
    "cdmem.diffusion.preconditioning": 1,
    "cdmem.diffusion.solvers": 1,
    "cdmem.diffusion.losses": 2,
    "cdmem.diffusion.sampling": 2,
    "cdmem.diffusion.analytic": 2,
    "cdmem.data": 0,
    "cdmem.data.pixels": 1,
    "cdmem.data.files": 1,
    "cdmem.data.cifar": 1,
    "cdmem.data.celeba": 1,
    "cdmem.data.sources": 1,
    "cdmem.data.duplication": 1,
    "cdmem.data.subset": 1,
    "cdmem.data.stream": 1,
    "cdmem.data.datamodule": 3,
    "cdmem.metrics": 0,
    "cdmem.metrics.neighbors": 1,
    "cdmem.metrics.precision": 1,
    "cdmem.metrics.groups": 1,
    "cdmem.metrics.feature_neighbors": 1,
    "cdmem.metrics.features": 1,
    "cdmem.metrics.efficientnet": 1,
    "cdmem.metrics.inception": 1,
    "cdmem.metrics.statistics": 1,
    "cdmem.metrics.roc": 1,
    "cdmem.metrics.base": 2,
    "cdmem.metrics.search": 2,
    "cdmem.metrics.feature_space": 2,
    "cdmem.metrics.memorization": 2,
    "cdmem.metrics.extraction": 2,
    "cdmem.metrics.coverage": 2,
    "cdmem.metrics.authenticity": 2,
    "cdmem.metrics.copying": 2,
    "cdmem.metrics.likelihood": 2,
    "cdmem.metrics.frechet": 1,
    "cdmem.metrics.fidelity": 2,
    "cdmem.metrics.prdc": 2,
    "cdmem.metrics.hog": 2,
    "cdmem.metrics.loss_gap": 2,
    "cdmem.metrics.optimum": 2,
    "cdmem.metrics.dimension": 2,
    "cdmem.metrics.membership": 2,
    "cdmem.metrics.pairing": 2,
    "cdmem.metrics.matching": 2,
    "cdmem.metrics.convergence": 2,
    "cdmem.metrics.verdict": 2,
    "cdmem.training": 0,
    "cdmem.training.ema": 3,
    "cdmem.training.randomness": 3,
    "cdmem.training.recipes": 3,
    "cdmem.training.module": 3,
    "cdmem.training.teacher": 3,
    "cdmem.training.keeper": 3,
    "cdmem.training.peers": 3,
    "cdmem.training.student": 3,
    "cdmem.training.archive": 3,
    "cdmem.training.checkpoint": 3,
    "cdmem.training.loggers": 3,
    "cdmem.training.progress": 3,
    "cdmem.training.compilation": 3,
    "cdmem.training.launch": 3,
    "cdmem.training.restoring": 4,
    "cdmem.training.precision": 3,
    "cdmem.pipelines": 3,
    "cdmem.imported": 3,
    "cdmem.references": 2,
    "cdmem.subjects": 4,
    "cdmem.distillation": 4,
    "cdmem.inside": 4,
    "cdmem.suite": 4,
    "cdmem.audit": 4,
    "cdmem.summary": 4,
    "cdmem.report": 0,
    "cdmem.report.charts": 0,
    "cdmem.report.charts_base": 0,
    "cdmem.report.charts_noise": 0,
    "cdmem.report.charts_svg": 0,
    "cdmem.report.lines": 0,
    "cdmem.report.html": 0,
    "cdmem.report.style": 0,
    "cdmem.report.read": 0,
    "cdmem.report.answer": 0,
    "cdmem.report.pictures": 0,
    "cdmem.report.evidence": 0,
    "cdmem.report.build": 0,
    "cdmem.report.compare": 1,
    "cdmem.theory": 0,
    "cdmem.theory.edge": 2,
    "cdmem.theory.edge.bookkeeping": 3,
    "cdmem.theory.edge.capacity": 3,
    "cdmem.theory.edge.crossover": 3,
    "cdmem.theory.edge.denoisers": 3,
    "cdmem.theory.edge.distil": 3,
    "cdmem.theory.edge.figures": 3,
    "cdmem.theory.edge.gaussians": 3,
    "cdmem.theory.edge.images": 3,
    "cdmem.theory.edge.laboratory": 3,
    "cdmem.theory.edge.losses": 3,
    "cdmem.theory.edge.mixture": 3,
    "cdmem.theory.edge.numbers": 3,
    "cdmem.theory.edge.optimiser": 3,
    "cdmem.theory.edge.process": 3,
    "cdmem.theory.edge.sampling": 3,
    "cdmem.theory.edge.show": 3,
    "cdmem.theory.edge.students": 3,
    "cdmem.theory.edge.study": 3,
    "cdmem.theory.edge.templates": 3,
    "cdmem.theory.edge.transition": 3,
    "cdmem.theory.edge.tuples": 3,
    "cdmem.theory.edge.weighting": 3,
    "cdmem.theory.bridge": 2,
    "cdmem.theory.bridge.gram": 2,
    "cdmem.theory.bridge.laboratory": 4,
    "cdmem.theory.bridge.lanczos": 2,
    "cdmem.theory.bridge.rule": 2,
    "cdmem.theory.bridge.show": 3,
    "cdmem.theory.decomposition": 2,
    "cdmem.theory.decomposition.correlation": 2,
    "cdmem.theory.decomposition.guidance": 2,
    "cdmem.theory.decomposition.trained": 4,
    "cdmem.theory.decomposition.laboratory": 4,
    "cdmem.theory.decomposition.parts": 2,
    "cdmem.theory.decomposition.show": 3,
    "cdmem.theory.decomposition.students": 2,
    "cdmem.theory.decomposition.trajectory": 2,
    "cdmem.theory.frame": 2,
    "cdmem.theory.pair": 4,
    "cdmem.theory.page": 2,
    "cdmem.theory.random_features": 2,
    "cdmem.theory.random_features.bulks": 2,
    "cdmem.theory.random_features.constants": 2,
    "cdmem.theory.random_features.distillation": 2,
    "cdmem.theory.random_features.distillation.chain": 2,
    "cdmem.theory.random_features.distillation.experiment": 2,
    "cdmem.theory.random_features.distillation.laboratory": 3,
    "cdmem.theory.random_features.distillation.leakage": 2,
    "cdmem.theory.random_features.distillation.sampling": 2,
    "cdmem.theory.random_features.distillation.show": 3,
    "cdmem.theory.random_features.distillation.student": 2,
    "cdmem.theory.random_features.equivalent": 2,
    "cdmem.theory.random_features.figures": 3,
    "cdmem.theory.random_features.flow": 2,
    "cdmem.theory.random_features.laboratory": 3,
    "cdmem.theory.random_features.limit": 2,
    "cdmem.theory.random_features.model": 2,
    "cdmem.theory.random_features.moments": 2,
    "cdmem.theory.random_features.population": 2,
    "cdmem.theory.random_features.show": 3,
    "cdmem.theory.random_features.spectra": 2,
    "cdmem.theory.random_features.sweep": 2,
    "cdmem.theory.two_gaussians": 2,
    "cdmem.theory.two_gaussians.laboratory": 3,
    "cdmem.theory.two_gaussians.measures": 2,
    "cdmem.theory.two_gaussians.network": 2,
    "cdmem.theory.two_gaussians.show": 3,
    "cdmem.theory.two_gaussians.times": 2,
    "cdmem.theory.two_gaussians.training": 2,
    "cdmem.theory_command": 5,
    "cdmem.export": 4,
    "cdmem.export_card": 4,
    "cdmem.export_command": 5,
    "cdmem.audit_command": 5,
    "cdmem.report_command": 5,
    "callbacks": 4,
    "callbacks.evaluation": 4,
    "callbacks.decomposition": 4,
    "callbacks.internal": 4,
    "callbacks.memorization": 4,
    "callbacks.metric": 4,
    "callbacks.onset": 4,
    "callbacks.panels": 4,
    "callbacks.quality": 4,
    "callbacks.samples": 4,
    "cdmem.tracking": 4,
    "cdmem.wandb_workspace": 4,
    "cdmem.plan": 0,
    "cdmem.plan.counting": 4,
    "cdmem.plan.images": 4,
    "cdmem.plan.work": 5,
    "cdmem.plan.build": 5,
    "cdmem.plan.frozen": 5,
    "cdmem.plan.stage": 5,
    "cdmem.plan.study": 5,
    "cdmem.plan.hours": 5,
    "cdmem.plan.text": 5,
    "cdmem.plan_command": 5,
    "cdmem.sample": 5,
    "cdmem.trainer_cli": 5,
    "cdmem.explain": 5,
    "cdmem.numbers": 5,
    "cdmem.study": 5,
    "cdmem.sweep": 5,
    "cdmem.cli": 5,
    "cdmem.__main__": 5,
}
LIGHTNING_FLOOR = 3


def modules() -> dict[str, Path]:
    found = {}
    for package in ("cdmem", "callbacks"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Every module a file imports, also inside functions, except under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


MODULES = modules()


def test_every_module_has_a_floor():
    assert set(MODULES) == set(FLOORS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name):
    for other in imported(MODULES[name]) & set(FLOORS):
        assert FLOORS[other] <= FLOORS[name], f"{name} (floor {FLOORS[name]}) imports {other} (floor {FLOORS[other]})"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_foreign_packages_stay_in_their_rooms(name):
    tops = {other.split(".")[0] for other in imported(MODULES[name])}
    if FLOORS[name] < LIGHTNING_FLOOR:
        assert not tops & {"lightning", "wandb"}
    if "diffusers" in tops:
        assert name in ("cdmem.networks", "cdmem.pipelines")
    if "callbacks" in tops and name.startswith("cdmem"):
        # The plan asks the callbacks of a config how often they draw how many samples.
        assert name in ("cdmem.trainer_cli", "cdmem.plan.work")
    if "wandb" in tops:
        assert name in ("cdmem.tracking", "cdmem.wandb_workspace")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_stay_small_and_documented(name):
    text = MODULES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{name} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or "Protocol" in ast.unparse(node), f"{name}.{node.name} has no docstring"


def test_only_one_place_knows_the_pixel_range():
    holders = [n for n, p in MODULES.items() if "127.5" in p.read_text(encoding="utf-8")]
    assert holders == ["cdmem.images"]


def test_importing_cdmem_is_light():
    code = "import sys, cdmem, cdmem.cli; sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
