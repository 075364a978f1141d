"""The `shadowlab` command from its first moment on: signals are heard before anything that takes time is imported."""

import sys
from typing import Any


def main() -> None:
    """Run the command of `sys.argv` and exit with its code."""
    try:
        from shadowlab.interruption import signals

        with signals.heard():
            try:
                from shadowlab.standard_streams import guarded

                with guarded(), signals.unmasked():
                    _run()
            finally:
                signals.leave_quietly()
    except KeyboardInterrupt:  # outside of any command: while it is imported or read
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _run() -> None:
    from cli.commands import app
    from cli.errors import run_reporting_usage
    from shadowlab.launched import end_with_launcher

    end_with_launcher()
    _keep_caches_usable()
    run_reporting_usage(app)


def _keep_caches_usable() -> None:
    import os

    from shadowlab.caches import replace_unusable_caches

    try:
        replaced = replace_unusable_caches()
    except OSError as error:
        sys.stderr.write(f"error: no folder for temporary files ({error.strerror}); set TMPDIR to one\n")
        sys.exit(3)
    if replaced and os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"warning: {replaced}\n")


def __getattr__(name: str) -> Any:
    """`app`, with all that it imports, for programs that run it themselves."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cli.commands import app

    return app


if __name__ == "__main__":
    main()
