"""One run as one HTML page that needs no network: what happened, why, and what to do about it."""

from shadowlab.views.page.page import write_report

__all__ = [
    "write_report",
]
