"""``python -m cdmem study``: teacher, student(s) and audit in one run folder; run again, it goes on where it stopped.

A study file names the stages' own config files, so ``fit`` and ``study`` train from the same settings::

    teacher: quickstart/teacher.yaml
    students: {student: quickstart/student.yaml}
    audit: {samples: 2000}

``--teacher.KEY``, ``--<student name>.KEY`` and ``--data.KEY`` on the command line (or as mappings in the file) override
settings of one stage or of all. ``--sweep data.n=32,64 seed=0,1,2`` runs a grid of studies in one folder; ``--jobs 2``
runs two of its studies, or of one study's students, at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cdmem.audit.text import print_summary
from cdmem.io.atomic import owned
from cdmem.report.build import write_report
from cdmem.report.compare import prepare_comparison, studies_below, write_run_level
from cdmem.run.provenance import environment
from cdmem.study.config import StudySettings, read_study
from cdmem.study.jobs import check_jobs
from cdmem.study.parsing import help_text, one_value, quiet_libraries
from cdmem.study.resume import with_own_settings
from cdmem.study.study import Study
from cdmem.study.sweep import run_sweep, split_arguments


def run_one(args: Sequence[str], at_once: int = 1) -> None:
    """One study from parsing to its page; ``at_once`` students at the same time."""
    started = time.time()
    config = read_study(args)
    study = Study(config)
    first = study.stages["teacher"]
    with owned(study.folder.path, first.trainer.is_global_zero):
        result = study.run(at_once)
        study.folder.write_json("environment.json", environment(first.settings.threads or 0))
        print_summary(result)
        page = write_report(config.run_dir)
    print(f"\n{time.time() - started:.0f} s; everything is in {config.run_dir}/; open {page}")


def run_study(args: Sequence[str]) -> int:
    """A study, alone or with ``--sweep``."""
    if not args or {"-h", "--help"} & set(args):
        print(help_text(StudySettings, "study", __doc__ or ""), end="")
        return 0
    quiet_libraries()
    rest, apart = split_arguments(with_own_settings("study", args), "sweep", "jobs")
    at_once = check_jobs(one_value("jobs", apart["jobs"])) if "jobs" in apart else 1
    if "sweep" not in apart:
        run_one(rest, at_once)
        return 0
    folder, sweep = run_sweep(rest, apart["sweep"], lambda cell: Study(read_study(cell)).digest, run_one, at_once)
    finished = studies_below(folder.path)
    if finished:
        said = write_run_level(finished, folder / "runs.json")
        print("\n".join(said), end="\n" * bool(said))
        print(f"comparison: {prepare_comparison(finished, folder / 'comparison.html')()}")
    failed = [cell for cell in sweep.cells if cell.status != "finished"]
    for cell in failed:
        print(f"failed: {cell.folder}: {cell.error}")
    return 1 if failed else 0
