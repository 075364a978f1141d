"""A Python script that is not ours, run as `python SCRIPT ARGS` or `python -m MODULE ARGS` would run it."""

import builtins
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType

from diagnostics.files import read_bytes, reason_of
from shadowlab.errors import UserError

_OURS = tuple(f"{Path(__file__).resolve().parents[2] / name}/" for name in ("cli", "shadowlab", "diagnostics"))
_TAKEN = ("diagnostics", "shadowlab")  # the watch loads parts of itself while the script runs


@dataclass(frozen=True)
class Script:
    """What is run."""

    name: str
    """Path of the file, or dotted name of the module."""
    arguments: tuple[str, ...]
    """What follows it on the command line, all of it the script's."""
    is_module: bool

    @classmethod
    def find(cls, name: str, arguments: tuple[str, ...], *, is_module: bool) -> "Script":
        """A script that can be run.

        Raises:
            UserError: it is not there, is not Python, or lies next to a package of this project's name.
        """
        script = cls(name, arguments, is_module)
        script._require()
        taken = [one for one in _TAKEN if (script._folder / one).is_dir() or (script._folder / f"{one}.py").is_file()]
        if taken and script._folder / taken[0] != Path(_OURS[0]).parent / taken[0]:
            raise UserError(
                f"{script._folder / taken[0]}: the script's folder has a module of the name that the watch itself has; "
                "rename it, or put diagnostics.Watch into the loop"
            )
        return script

    @property
    def words(self) -> list[str]:
        """As they are typed behind `shadowlab watch`."""
        return [*(["-m"] if self.is_module else []), self.name, *self.arguments]

    @property
    def _folder(self) -> Path:
        return Path.cwd() if self.is_module else Path(self.name).resolve().parent

    def _require(self) -> None:
        if self.is_module:
            with _first_on_path(str(Path.cwd())):
                try:
                    found = find_spec(self.name)
                except (ImportError, ValueError, AttributeError) as error:
                    raise UserError(f"-m {self.name}: no such module ({error})") from None
            if found is None:
                raise UserError(f"-m {self.name}: no such module; it is looked for where this was started")
            return
        path = Path(self.name)
        if path.is_dir() and (path / "__main__.py").is_file():
            return
        try:
            source = read_bytes(path)
        except FileNotFoundError:
            hint = "; for a module write -m" if path.suffix != ".py" and "/" not in self.name else ""
            raise UserError(f"{self.name}: no such file{hint}") from None
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({reason_of(error)})") from None
        try:
            compile(source, self.name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            said = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UserError(f"{self.name}{line}: not Python ({said})") from None

    def run(self) -> None:
        """Run it to its end as `__main__`, with its own arguments and its folder first on the path.

        Raises:
            BaseException: what it raises, SystemExit too.
        """
        argv = sys.argv
        sys.argv = [self.name, *self.arguments]
        if (self._folder / "cli").is_dir() or (self._folder / "cli.py").is_file():  # nobody needs ours any more
            for name in [one for one in sys.modules if one == "cli" or one.startswith("cli.")]:
                del sys.modules[name]
        try:
            with _first_on_path(str(self._folder)):
                if self.is_module:
                    runpy.run_module(self.name, run_name="__main__", alter_sys=True)
                elif Path(self.name).is_dir():
                    runpy.run_path(self.name, run_name="__main__")
                else:
                    self._run_file()
        finally:
            sys.argv = argv

    def _run_file(self) -> None:
        """As Python does it: runpy.run_path would change `sys.argv[0]` or leave `__file__` relative."""
        path = Path.cwd() / self.name
        code = compile(read_bytes(path), str(path), "exec", dont_inherit=True)
        main, before = ModuleType("__main__"), sys.modules["__main__"]
        vars(main).update(__file__=str(path), __builtins__=builtins, __cached__=None)
        sys.modules["__main__"] = main
        try:
            exec(code, vars(main))
        finally:
            sys.modules["__main__"] = before


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    """`folder` in the place of what Python put first on its path, the folder of the command."""
    before = sys.path[:]
    if not sys.flags.safe_path and sys.path:
        del sys.path[0]
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = before


def is_ours(filename: str) -> bool:
    """Whether a file belongs to this project, or to what runs a script."""
    return filename.startswith(_OURS) or filename == "<frozen runpy>" or filename.endswith("/runpy.py")


def without_our_frames(error: BaseException) -> BaseException:
    """The same error, its traceback and those of the errors behind it as Python would have them without a watch."""
    ahead: list[BaseException | None] = [error]
    met: set[int] = set()
    while ahead:
        one = ahead.pop()
        if one is None or id(one) in met:
            continue
        met.add(id(one))
        one.__traceback__ = _foreign(one.__traceback__)
        ahead += [one.__cause__, one.__context__]
    return error


def _foreign(traceback: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    while traceback is not None:
        if not is_ours(traceback.tb_frame.f_code.co_filename):
            kept.append(traceback)
        traceback = traceback.tb_next
    for one, following in zip(kept, [*kept[1:], None], strict=False):
        one.tb_next = following
    return kept[0] if kept else None
