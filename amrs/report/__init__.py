"""Figures with their intervals, as tidy rows, a page, and a short table.

report = Report(finite_rows(rows), provenance)
report.save(run_folder)            # report.json and report.html
print(terminal_table(report))
again = load(run_folder)
"""

from amrs.report.rows import METRICS, SECTIONS, Report, ReportError, Row, finite_rows, load
from amrs.report.splits import over_folds, over_splits
from amrs.report.words import terminal_table

__all__ = [
    "METRICS",
    "SECTIONS",
    "Report",
    "ReportError",
    "Row",
    "finite_rows",
    "load",
    "over_folds",
    "over_splits",
    "terminal_table",
]
