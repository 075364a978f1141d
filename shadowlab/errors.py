"""Errors that a user can act on. The command line prints their message as one line and exits with `exit_code`."""


class UserError(Exception):
    """Wrong usage, configuration or data. The message names the file, key or sample and the mend."""

    exit_code = 2
    reported = False  # whether the JSON document of the command tells of it already
    told = False  # whether a process has printed the message already
    shared = False  # whether every process of the run raises it, so that the first one's words are enough


class MissingDependencyError(UserError):
    """A package or a file that the environment must provide is absent. The message says how to get it."""

    exit_code = 3


class StageStoppedError(UserError):
    """A stage that was under way met data that cannot be read. stages.json tells of it."""


class StageFailedError(UserError):
    """A numerical or stage check failed. The message says what was expected, what was seen, what to do."""

    exit_code = 1


class LostProcessError(UserError):
    """One of several processes was killed or hangs. The message names its rank."""

    exit_code = 3


class InterruptedRunError(Exception):
    """SIGINT or SIGTERM stopped a run in an orderly way. The message says what is saved.

    saved: whether a checkpoint of the last step was written, so that nothing is lost.
    """

    def __init__(self, message: str, *, saved: bool = False) -> None:
        super().__init__(message)
        self.saved = saved
