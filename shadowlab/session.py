"""What every stage is given, opened once: configuration, run folder, processes, reporter, task."""

from dataclasses import dataclass, replace
from typing import Any, Self

from shadowlab.console import Reporter
from shadowlab.distributed import Processes, SingleProcess
from shadowlab.runs import RunFolder
from shadowlab.settings import Config
from shadowlab.tasks import Task, open_task


@dataclass(frozen=True)
class Session:
    """One run of a stage."""

    config: Config
    run: RunFolder
    processes: Processes
    reporter: Reporter
    task: Task[Any]
    """Without a VAE, until the stage loads it."""

    @classmethod
    def open(cls, config: Config, run: RunFolder, processes: Processes, reporter: Reporter) -> Self:
        """With the configured task. Raises UserError as `open_task`."""
        return cls(config, run, processes, reporter, open_task(config))

    def alone(self, run: RunFolder, reporter: Reporter) -> Self:
        """For a stage that this process runs by itself, in a folder of its own.

        It has a task of its own, so that the VAE which it loads is gone when it is through.
        """
        alone = SingleProcess(self.processes.device)
        return replace(self, run=run, reporter=reporter, processes=alone, task=open_task(self.config))
