"""What TensorBoard is started on: a folder of links, so that it shows runs by their names.

On a run's own tensorboard/ it would call the run `.`, on a folder of runs `NAME/tensorboard`.
"""

import tempfile
import time
from pathlib import Path
from types import TracebackType

_LOOK_SECONDS = 5.0  # a run that begins meanwhile appears after so long
_MOST = 1_000  # runs


class NamedRuns:
    """A temporary folder with a link for each run, removed afterwards.

    Args:
        view: a run's event files, or a folder of runs.
        place: the run, or the folder of runs.
    """

    def __init__(self, view: Path, place: Path) -> None:
        self._view, self._place = view, place
        self._temporary = tempfile.TemporaryDirectory(prefix="shadowlab-tensorboard-")
        self.folder = Path(self._temporary.name)
        """For TensorBoard."""
        self._is_one = view != place
        self._link()

    def __enter__(self) -> "NamedRuns":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.cleanup()

    def follow(self) -> None:
        """Link runs as they begin, without end."""
        while True:
            time.sleep(_LOOK_SECONDS)
            if not self._is_one:
                self._link()

    def _link(self) -> None:
        views = {self._place.name or "run": self._view} if self._is_one else self._views()
        for name, view in list(views.items())[:_MOST]:
            link = self.folder / name
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(view.resolve(), target_is_directory=True)

    def _views(self) -> dict[str, Path]:
        """Name -> event files, of runs below the folder and of those inside them."""
        found: dict[str, Path] = {}
        for pattern in ("*/tensorboard", "*/*/tensorboard"):
            for view in sorted(self._place.glob(pattern)):
                name = str(view.parent.relative_to(self._place))
                # A run inside another cannot lie below a link: its name is written with a dash.
                if view.is_dir() and not view.is_symlink():
                    found.setdefault(name.replace("/", " - "), view)
        return found
