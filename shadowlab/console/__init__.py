"""What a person reads while a stage runs, and tables that fit the width of a terminal or a page."""

from shadowlab.console.fitted_table import Column, FittedTable
from shadowlab.console.fitted_text import wrapped_text
from shadowlab.console.reporter import Reporter
from shadowlab.console.sparklines import sparkline

__all__ = ["Column", "FittedTable", "Reporter", "sparkline", "wrapped_text"]
