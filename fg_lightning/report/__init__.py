"""The report of a monitored run or a ROAR experiment: one HTML file that works offline."""

from fg_lightning.report.html_report import write_report

__all__ = ["write_report"]
