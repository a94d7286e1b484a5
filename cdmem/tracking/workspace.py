"""``python -m cdmem wandb-workspace --project P``: a W&B workspace with our curves and panels, made by one command.

W&B offers no way to make one without its server: this needs a login and the package ``wandb-workspaces``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from cdmem.errors import InputError
from cdmem.tracking.wandb import IMAGES, STEP, has_login

NAME = "cdmem: memorisation"


@dataclass(frozen=True)
class PanelSpec:
    """One panel.

    Attributes:
        title: above it.
        keys: logged keys, see ``docs/wandb.md``.
        axis: x axis of a line plot; None makes a media browser.
    """

    title: str
    keys: tuple[str, ...]
    axis: str | None = STEP


F_MEM = ("memorization/f_mem", "memorization/f_mem_low", "memorization/f_mem_high")
LAYOUT: dict[str, list[PanelSpec]] = {
    "Memorisation": [
        PanelSpec("f_mem with its 95 % interval", F_MEM),
        PanelSpec("f_mem against images seen", F_MEM[:1], IMAGES),
        PanelSpec("unique training images hit", ("memorization/unique",)),
        PanelSpec("onset", ("onset/tau_mem", "onset/tau_gen")),
    ],
    "Quality": [
        PanelSpec("distance to H and to T", ("quality/fd_pixels", "quality/fd_pixels_train")),
        PanelSpec("the same against images seen", ("quality/fd_pixels",), IMAGES),
    ],
    "Distillation": [
        PanelSpec("rmse to the teacher's endpoints", ("distillation/rmse_to_teacher",)),
        PanelSpec("variance ratio", ("distillation/variance_ratio",)),
        PanelSpec("same basin as the teacher", ("distillation/same_basin",)),
    ],
    "Pictures": [
        PanelSpec("samples and what they copy", ("panels/neighbors",), None),
        PanelSpec("teacher and student", ("panels/pairs",), None),
        PanelSpec("CDF and multiplicity", ("panels/curves",), None),
        PanelSpec("fixed seeds", ("samples/grid",), None),
    ],
    "Training": [PanelSpec("loss", ("train/loss",))],
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError("arguments", self.prog, message, "see --help")


def parser() -> argparse.ArgumentParser:
    """The options of ``wandb-workspace``."""
    p = _Parser(prog="python -m cdmem wandb-workspace", description=__doc__)
    p.add_argument("--project", required=True, help="the W&B project that holds the runs, usually cdmem")
    p.add_argument("--entity", default=None, help="user or team; your default one if absent")
    p.add_argument("--name", default=NAME, help="name of the workspace view")
    return p


def build_workspace(project: str, entity: str, name: str) -> Any:
    """The workspace object, not saved.

    Raises:
        InputError: wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces.reports import v2 as panels
        from wandb_workspaces.workspaces import Section, Workspace
    except ImportError:
        mend = "pip install wandb-workspaces"
        raise InputError("wandb-workspaces", None, "is needed to make a workspace and not installed", mend) from None

    def panel(spec: PanelSpec) -> Any:
        if spec.axis is None:
            return panels.MediaBrowser(title=spec.title, media_keys=list(spec.keys))
        return panels.LinePlot(title=spec.title, x=spec.axis, y=list(spec.keys))

    sections = [
        Section(name=title, panels=[panel(s) for s in specs], is_open=title != "Training")
        for title, specs in LAYOUT.items()
    ]
    return Workspace(entity=entity, project=project, name=name, sections=sections)


def run_workspace(args: Sequence[str]) -> int:
    """``python -m cdmem wandb-workspace``."""
    options = parser().parse_args(args)
    if not has_login():
        mend = "wandb login, or set WANDB_API_KEY"
        raise InputError("wandb", "no login", "a workspace lives on the W&B server", mend)
    try:
        if options.entity is None:
            import wandb

            options.entity = wandb.Api().default_entity
        workspace = build_workspace(options.project, options.entity, options.name)
        workspace.save()
    except InputError:
        raise
    except Exception as error:  # the server's answer, whatever it is, in one line
        reason = f"W&B refused ({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''})"
        raise InputError("project", options.project, reason, "check login, entity and project") from None
    print(f"workspace: {workspace.url}")
    return 0
