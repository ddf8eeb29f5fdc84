"""Reports of a monitored run, of several runs, or of an experiment. A report is one HTML file that works offline."""

from fg_lightning.report.html_report import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
