"""The report: what a monitored run or a ROAR experiment found, as one HTML file that opens without a network."""

from fg_lightning.errors import CannotRun
from fg_lightning.report.html_page import write_report

__all__ = ["CannotRun", "write_report"]
