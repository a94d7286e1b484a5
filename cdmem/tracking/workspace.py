"""A W&B workspace with our curves and panels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cdmem.errors import InputError
from cdmem.tracking.wandb import IMAGES, STEP

NAME = "cdmem: memorisation"


@dataclass(frozen=True)
class PanelSpec:
    """A panel of logged keys, see ``docs/wandb.md``: lines against ``axis``, or without one a media browser."""

    title: str
    keys: tuple[str, ...]
    axis: str | None = STEP


F_MEM = ("memorization/f_mem", "memorization/f_mem_low", "memorization/f_mem_high")
TOLERANT = tuple(f"memorization/tolerant_copies{end}" for end in ("", "_low", "_high"))
LAYOUT: dict[str, list[PanelSpec]] = {
    "Memorisation": [
        PanelSpec("f_mem with its 95 % interval", F_MEM),
        PanelSpec("tolerant copies with their 95 % interval", TOLERANT),
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


def build_workspace(project: str, entity: str | None, name: str) -> Any:
    """The workspace object, not saved; ``entity`` None is the user's default one.

    Raises:
        InputError: wandb-workspaces is not installed.
    """
    try:
        import wandb
        from wandb_workspaces.reports import v2 as panels
        from wandb_workspaces.workspaces import Section, Workspace
    except ImportError:
        hint = "pip install wandb-workspaces"
        raise InputError("wandb-workspaces", None, "is needed to make a workspace and not installed", hint) from None

    def panel(spec: PanelSpec) -> Any:
        if spec.axis is None:
            return panels.MediaBrowser(title=spec.title, media_keys=list(spec.keys))
        return panels.LinePlot(title=spec.title, x=spec.axis, y=list(spec.keys))

    sections = [
        Section(name=title, panels=[panel(s) for s in specs], is_open=title != "Training")
        for title, specs in LAYOUT.items()
    ]
    entity = entity or wandb.Api().default_entity
    return Workspace(entity=entity, project=project, name=name, sections=sections)
