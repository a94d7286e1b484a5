"""The README's figures, taken from a study's report: f_mem along distillation, and what became of every seed.

python benchmarks/readme_figure.py --run runs/quickstart --out docs
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from cdmem.report.build import write_report

FIGURES = {"f_mem_student.png": "f_mem_student.png", "transfer_student_1.png": "transfer_student_1.png"}


def main() -> None:
    """Write the report anew and copy its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    write_report(options.run)
    options.out.mkdir(parents=True, exist_ok=True)
    for source, target in FIGURES.items():
        shutil.copyfile(options.run / "report" / source, options.out / target)
        print(options.out / target)


if __name__ == "__main__":
    main()
