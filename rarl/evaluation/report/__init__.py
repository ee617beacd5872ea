"""One HTML file that shows what a run, or a comparison of runs, came to; nothing in it is fetched
from anywhere."""

from rarl.evaluation.report.write import write_report

__all__ = ["write_report"]
