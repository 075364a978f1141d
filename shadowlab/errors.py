"""Errors that a user can act on. The command line prints their message as one line and exits with `exit_code`."""


class UserError(Exception):
    """Wrong usage, configuration or data. The message names the file, key or sample and the mend."""

    exit_code = 2
    reported = False  # whether the JSON document of the command tells of it already


class MissingDependencyError(UserError):
    """A package or a file that the environment must provide is absent. The message says how to get it."""

    exit_code = 3


class StageStoppedError(UserError):
    """A stage that was under way met data that cannot be read. stages.json tells of it."""


class StageFailedError(UserError):
    """A numerical or stage check failed. The message says what was expected, what was seen, what to do."""

    exit_code = 1


class InterruptedRunError(Exception):
    """Ctrl-C stopped a run in an orderly way. The message says what is saved."""
