"""Errors that a user can act on. The command line prints their message as one line and exits with `exit_code`."""


class UserError(Exception):
    """Wrong usage, configuration or data. The message names the file, key or sample, and the fix."""

    exit_code = 2
    """Of the command that it ends."""
    reported = False
    """Whether the command's JSON document has it already."""
    printed = False
    """Whether a process has printed the message already."""
    shared = False
    """Whether every process of the run raises it, so that one message is enough."""


class TaskOptionError(UserError):
    """A key of the configuration that only the task could judge. Where it came from is known to who read it."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


class MissingDependencyError(UserError):
    """A package or a file that the environment must provide is absent. The message says how to get it."""

    exit_code = 3


class StageStoppedError(UserError):
    """A stage that was under way met data that cannot be read. stages.json records it."""


class StageFailedError(UserError):
    """A numerical or stage check failed. The message says what was expected, what was seen, what to do."""

    exit_code = 1


class LostProcessError(UserError):
    """One of several processes was killed or hangs. The message names its rank."""

    exit_code = 3


class SinkError(Exception):
    """The library behind a view has raised something; the message is one line. It ends no run."""


class InterruptedRunError(Exception):
    """SIGINT or SIGTERM stopped a run in an orderly way. The message says what is saved.

    Args:
        saved: whether a checkpoint of the last step was written, so that nothing is lost.
    """

    exit_code = 130
    """Of the command that it ends, unless all was saved."""

    def __init__(self, message: str, *, saved: bool = False) -> None:
        super().__init__(message)
        self.saved = saved
        self.printed = False
        """Whether another process prints the message."""
