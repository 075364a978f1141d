"""What ends a watched step."""


class Trip(BaseException):
    """Unwinds the caller's step. Not an Exception: a loop's own `except Exception` must not swallow it."""

    by: object
    """Whose checks met it: a step may run inside a step of another watch."""

    def __init__(self, phase: str, text: str, *, by: object) -> None:
        super().__init__(text)
        self.phase, self.text, self.by = phase, text, by


class BufferTrip(Trip):
    """A buffer that is not finite. Infinity may be meant there: a mask, a running extreme."""


class SkipTrip(Trip):
    """A gradient scaler left the step out once more. That may be how it finds its scale."""


class ExceptionTrip(Trip):
    """The step's own exception, which a value that is not finite may have caused."""

    def __init__(self, cause: BaseException, *, by: object) -> None:
        super().__init__("forward", f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}", by=by)
        self.cause = cause
