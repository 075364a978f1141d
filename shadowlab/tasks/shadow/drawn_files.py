"""Requests to files, shared by several processes: all are examined before anything is written, each is drawn once.

A file is there as a whole or not at all, and carries a digest of what decided it; so a call that was stopped goes on
where it was, and another file of the same name is not touched.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diagnostics.files import reason_of, replace
from shadowlab.console import Reporter
from shadowlab.data import one_line
from shadowlab.distributed import Processes, share_out
from shadowlab.errors import UserError
from shadowlab.tasks.shadow.compositing import read_background
from shadowlab.tasks.shadow.generate import PreparedObject, ShadowGenerator
from shadowlab.tasks.shadow.object_picture import ObjectPicture, read_object_picture
from shadowlab.tasks.shadow.request import ShadowRequest
from shadowlab.tasks.shadow.request_list import placed
from shadowlab.tasks.shadow.result_picture import check_size, digest_in, digest_of, draw_result

_MOST_SHOWN = 20  # problems that are printed


@dataclass(frozen=True)
class FilesReport:
    """What became of the requests."""

    written: int
    kept: int
    """Files that an earlier call of this command had written."""
    width: int
    height: int
    """Of the first object's picture, pixels."""


@dataclass(frozen=True)
class _Examined:
    problem: str | None = None
    digest: str = ""
    is_there: bool = False
    size: tuple[int, int] = (0, 0)


def generate_files(
    requests: Sequence[ShadowRequest],
    problems: Sequence[str],
    generator: ShadowGenerator,
    model: str,
    processes: Processes,
    reporter: Reporter,
    *,
    overwrite: bool = False,
) -> FilesReport:
    """Write the file of every request. A collective: every process calls it, with the same arguments.

    Args:
        problems: what was found to be wrong with other rows of the list already.
        model: digest of the model.
        overwrite: replace files that are there already.

    Raises:
        UserError: anything is wrong with one of them; all that is wrong is printed, and nothing was written.
    """
    shown = reporter if len(requests) > 1 else Reporter(active=False)
    desk = _Desk(generator, model, overwrite)
    examined = share_out(processes, requests, desk.examine, shown, noun="row")
    faults = [*problems, *(one.problem for one in examined if one.problem is not None)]
    if faults:
        is_list = bool(problems) or bool(requests[0].where)
        raise _refusal(faults, reporter) if is_list else _shared(UserError(faults[0]))
    pending = [(request, one) for request, one in zip(requests, examined, strict=True) if not one.is_there]
    share_out(processes, pending, desk.draw, shown, noun="picture")
    height, width = examined[0].size
    return FilesReport(len(pending), len(requests) - len(pending), width, height)


def _refusal(faults: Sequence[str], reporter: Reporter) -> UserError:
    for fault in faults[:_MOST_SHOWN]:
        reporter.say(fault, style="red")
    if len(faults) > _MOST_SHOWN:
        reporter.say(f"... and {len(faults) - _MOST_SHOWN} more", style="red")
    count = "1 problem" if len(faults) == 1 else f"{len(faults)} problems"
    return _shared(UserError(f"{count} in the list; nothing was written"))


def _shared(error: UserError) -> UserError:
    """Every process raises it, and one message is enough."""
    error.shared = True
    return error


def _placed(request: ShadowRequest, problem: str) -> str:
    """With row and column of a list."""
    named = {"mask": request.mask, "background": request.background, "out": request.out, "object": request.object}
    return placed(request.where, problem, named) if request.where else problem


class _Desk:
    """One process at work; of rows that follow one another with the same object it reads and encodes it once."""

    def __init__(self, generator: ShadowGenerator, model: str, overwrite: bool) -> None:
        self._generator, self._model, self._overwrite = generator, model, overwrite
        self._picture: tuple[object, ObjectPicture] | None = None
        self._prepared: tuple[object, PreparedObject] | None = None

    def examine(self, requests: Sequence[ShadowRequest]) -> Iterator[_Examined]:
        """Whether each can be drawn, as far as can be said without drawing it."""
        for request in requests:
            try:
                yield self._examine(request)
            except UserError as error:
                yield _Examined(_placed(request, str(error)))

    def _examine(self, request: ShadowRequest) -> _Examined:
        picture = self._read(request)
        picture.fitted(self._generator.image_size)
        check_size(request, *picture.size)
        if request.background is not None:
            read_background(request.background, *picture.size, request.style.fit)
        try:
            digest = digest_of(request, self._model)
        except OSError as error:
            raise UserError(f"{one_line(str(error.filename))}: cannot be read ({reason_of(error)})") from None
        return _Examined(None, digest, self._is_there(request, digest), picture.size)

    def _is_there(self, request: ShadowRequest, digest: str) -> bool:
        """Whether the file is there as it is wanted.

        Raises:
            UserError: another one is, which may not be replaced.
        """
        out, where = request.out, one_line(str(request.out))
        if out.is_dir():
            raise UserError(f"{where}: a folder; give the name of a file in it")
        if not os.path.lexists(out):
            return False
        try:
            if digest_in(out) == digest:
                return True
        except OSError:  # a broken link, a pipe: not a result
            pass
        if not self._overwrite:
            raise UserError(f"{where}: is there already and shows something else; choose another name, or --overwrite")
        return False

    def draw(self, work: Sequence[tuple[ShadowRequest, _Examined]]) -> Iterator[None]:
        """Write the files."""
        for request, examined in work:
            key = (request.object, request.mask)
            if self._prepared is None or self._prepared[0] != key:
                self._prepared = key, self._generator.prepare(self._read(request))
            content = draw_result(request, self._prepared[1], self._generator, examined.digest)
            try:
                request.out.parent.mkdir(parents=True, exist_ok=True)
                replace(request.out, content)
            except OSError as error:
                raise UserError(
                    f"{one_line(str(request.out))}: cannot be written ({reason_of(error)}); what is written stays"
                ) from None
            yield None

    def _read(self, request: ShadowRequest) -> ObjectPicture:
        key = (request.object, request.mask)
        if self._picture is None or self._picture[0] != key:
            self._picture = key, read_object_picture(*key)
        return self._picture[1]
