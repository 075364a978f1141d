"""How much of a run's time goes into waiting for data."""

from shadowlab.console import Reporter
from shadowlab.latents import encode_command
from shadowlab.settings import Config

MAX_SHARE = 0.2  # of the steps' time; above it a warning is due


class DataWait:
    """The share of the steps' time that was spent waiting for data, since the last log line.

    The first step is left out: it waits for the workers to start.
    """

    def __init__(self, config: Config, reporter: Reporter) -> None:
        self._config, self._reporter = config, reporter
        self._started = self._warned = False
        self._waited = self._total = 0.0

    def add(self, waited_seconds: float, step_seconds: float) -> None:
        """One step; `step_seconds` includes the wait."""
        if self._started:
            self._waited += waited_seconds
            self._total += step_seconds
        self._started = True

    @property
    def share(self) -> float:
        """Of the steps since the last line, in [0, 1]."""
        return self._waited / self._total if self._total else 0.0

    @property
    def text(self) -> str:
        return f"{self.share:.0%}".replace("%", " %")

    def end_window(self) -> None:
        """Begin the next window; warn, once a run, where this one waited too long."""
        if self.share > MAX_SHARE and not self._warned:
            self._warned = True
            self._reporter.warn(f"{self.text} of the time went into waiting for data: {self._fix()}")
        self._waited = self._total = 0.0

    def _fix(self) -> str:
        data = self._config.data
        workers = f"raise --set data.num_workers=N, now {data.num_workers}"
        if data.latents is not None:
            return f"{workers}, or put {data.latents} on a faster disk"
        out = "LATENTS"
        return f"{workers}, or read latents: {encode_command(self._config, out)}, then --set data.latents={out}"
