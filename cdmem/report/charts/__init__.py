"""Charts: a type with SVG, PNG and CSV, and one function for each kind."""

from cdmem.report.charts.base import Chart
from cdmem.report.charts.curves import Series, cdfs, curves, path
from cdmem.report.charts.noise import by_noise, hits_by_multiplicity
from cdmem.report.charts.seeds import ratio_scatter, transfer_mosaic

__all__ = [
    "Chart",
    "Series",
    "by_noise",
    "cdfs",
    "curves",
    "hits_by_multiplicity",
    "path",
    "ratio_scatter",
    "transfer_mosaic",
]
