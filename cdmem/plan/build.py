"""A stage built as ``fit`` would build it, for a machine that need not be this one; nothing is read or written."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdmem.errors import InputError
from cdmem.study.parsing import PARSING, explain, one_line, quiet_libraries
from cdmem.study.stage import Stage


@dataclass(frozen=True)
class Machine:
    """Where the config wants to run.

    Attributes:
        devices: of all nodes together; 1 for ``auto``.
        accelerator: as configured.
        precision: as configured.
    """

    devices: int
    accelerator: str
    precision: str

    @property
    def low(self) -> bool:
        """Whether the trained network runs in 16 bit."""
        return self.precision in ("bf16-mixed", "16-mixed")


class PlanCLI(Stage):
    """``fit`` up to the point where data would be read, on whatever machine this is."""

    def before_instantiate_classes(self) -> None:
        """Remember the machine that was asked for, and ask for none."""
        self.check_sections()
        t, model = self.settings.trainer, self.settings.model.init_args
        self.machine = Machine(count_devices(t.devices) * t.num_nodes, str(t.accelerator), str(t.precision))
        # What only the other machine can do is not asked of this one; neither changes a count.
        if t.precision == "16-mixed":
            t.precision = "bf16-mixed"
        if model.get("compile"):
            model.compile = False
        super().before_instantiate_classes()
        t.accelerator, t.devices, t.num_nodes, t.strategy, t.precision = "cpu", 1, 1, "auto", "32-true"
        t.logger, t.plugins, t.enable_progress_bar = False, None, False

    def _run_subcommand(self, subcommand: str) -> None:
        if self.trainer.max_steps < 1:
            problem = "the stream of images never ends"
            raise InputError("trainer.max_steps", self.trainer.max_steps, problem, "set a number")


def build_stage(args: Sequence[str]) -> PlanCLI:
    """Parse the arguments of ``fit``.

    Raises:
        InputError: whatever ``fit`` would refuse before it reads data.
    """
    quiet_libraries()
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stderr(quiet):
            return PlanCLI("fit", args)
    except PARSING as error:
        raise explain(error) from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError("plan", " ".join(args), one_line(quiet.getvalue()), "see fit --help") from None


def count_devices(devices: Any) -> int:
    """Devices of a node as Lightning reads ``trainer.devices``; all that there are (``auto``, -1) count as 1."""
    text = str(devices).strip("[] ")
    if text in ("auto", "-1", "None"):
        return 1
    numbers = [part.strip() for part in text.split(",") if part.strip()]
    if not numbers or not all(part.isdigit() for part in numbers):
        raise InputError("trainer.devices", devices, "is no number of devices", "e.g. 8, [0, 1] or auto")
    listed = isinstance(devices, list | tuple) or len(numbers) > 1 or text != str(devices).strip()
    found = len(numbers) if listed else int(numbers[0])
    if found < 1:
        raise InputError("trainer.devices", devices, "is no number of devices", "use 1 or more")
    return found
