"""One page that shows what runs did."""

from arcadia.report.page import write_report

__all__ = ["write_report"]
