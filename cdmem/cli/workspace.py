"""``python -m cdmem wandb-workspace --project P``: a W&B workspace with our curves and panels, made by one command.

W&B offers no way to make one without its server: this needs a login and the package ``wandb-workspaces``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdmem.cli.arguments import parse
from cdmem.errors import InputError
from cdmem.tracking.wandb import has_login
from cdmem.tracking.workspace import NAME, build_workspace


@dataclass(frozen=True, kw_only=True)
class WorkspaceCommand:
    """Options of wandb-workspace.

    Attributes:
        project: the W&B project that holds the runs, usually cdmem.
        entity: user or team; your default one if null.
        name: name of the workspace view.
    """

    project: str
    entity: str | None = None
    name: str = NAME


def run_workspace(args: Sequence[str]) -> int:
    """Make the workspace and print its address."""
    options = parse(WorkspaceCommand, args, "wandb-workspace", about=__doc__ or "")
    if not has_login():
        hint = "wandb login, or set WANDB_API_KEY"
        raise InputError("wandb", "no login", "a workspace lives on the W&B server", hint)
    try:
        workspace = build_workspace(options.project, options.entity, options.name)
        workspace.save()
    except InputError:
        raise
    except Exception as error:  # the server's answer, whatever it is, in one line
        reason = f"W&B refused ({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''})"
        raise InputError("project", options.project, reason, "check login, entity and project") from None
    print(f"workspace: {workspace.url}")
    return 0
