"""The browser window of the tests in this folder."""

from tests.browser import browser

__all__ = ["browser"]
