"""The contracts of a watch: what its steps break is written, logged, and raised where that is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diagnostics.contracts import Contracts
from diagnostics.errors import ContractError
from diagnostics.health import Finding
from diagnostics.ranks import rank
from diagnostics.watching.guarded import Guarded
from diagnostics.watching.journal import Journal, log_findings


class KeptContracts:
    """Asked in every step, or not at all."""

    findings: list[Finding]
    """What was found, each thing once."""

    def __init__(self, guarded: Guarded, journal: Journal | None, *, is_asked: bool, raises: bool) -> None:
        self.findings = []
        self._journal, self._raises = journal, raises
        self._contracts: Contracts | None = None
        if is_asked:
            are_given = bool(guarded.optimizers)
            self._contracts = Contracts(guarded.models, guarded.optimizers, are_given=are_given)

    @contextmanager
    def hearing(self, index: int, batch: Any, *, is_due: bool, is_accelerated: bool) -> Iterator[None]:
        """The step with this 0-based index runs inside; is_accelerated: by an Accelerator that is known."""
        if self._contracts is None:
            yield
            return
        with self._contracts.hearing(index, batch, is_due=is_due, is_accelerated=is_accelerated):
            yield

    def end(self, index: int, result: Any, *, is_skipped: bool) -> None:
        """The step has ended well.

        Raises:
            ContractError: an alarm was found, and the watch raises.
        """
        if self._contracts is not None:
            self._contracts.end(result, is_skipped=is_skipped)
            self._publish(index)

    def forget(self) -> None:
        """The step is repeated: nothing that it showed counts."""
        if self._contracts is not None:
            self._contracts.forget()

    def fail(self, index: int) -> None:
        """The step ended in an error of its own, which a broken contract may explain."""
        if self._contracts is not None:
            self._contracts.forget()
            self._tell(index, self._contracts.take_new())

    def add_metric(self, index: int, name: str, value: float, higher_is_better: bool | None, kept: bool) -> None:
        """As `Watch.metric`; index: of the last step."""
        if self._contracts is not None:
            self._contracts.add_metric(name, value, higher_is_better=higher_is_better, kept=kept)
            self._publish(index)

    def add_choice(self, name: str, *, higher_is_better: bool, by: str) -> None:
        """The host that owns the loop keeps or stops by a metric."""
        if self._contracts is not None:
            self._contracts.add_choice(name, higher_is_better=higher_is_better, by=by)
            self._publish(0)

    def detach(self) -> None:
        """Leave no trace in torch or in the models."""
        if self._contracts is not None:
            self._contracts.detach()

    def _publish(self, index: int) -> None:
        assert self._contracts is not None
        new = self._contracts.take_new()
        self._tell(index, new)
        alarm = next((finding for finding in new if finding.severity == "alarm"), None)
        if self._raises and alarm is not None:
            raise ContractError(alarm)

    def _tell(self, index: int, new: list[Finding]) -> None:
        if not new:
            return
        if self._journal is None:
            self.findings += new
            if rank() == 0:
                log_findings(index + 1, new)
        else:
            self._journal.report(index, new)
