"""What a person reads while a stage runs."""

from shadowlab.console.reporter import Reporter
from shadowlab.console.sparklines import sparkline

__all__ = ["Reporter", "sparkline"]
