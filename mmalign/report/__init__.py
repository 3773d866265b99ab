"""The page of a run: numbers, curves and pictures in one HTML file that opens offline."""

from mmalign.report.page import write_report

__all__ = ["write_report"]
