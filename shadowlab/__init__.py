"""shadowlab: the controllable shadow generator and its debugging-first training harness."""

__version__ = "0.1.0"
