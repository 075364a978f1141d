"""The errors that a watched step raises."""

from pathlib import Path
from typing import TYPE_CHECKING

from diagnostics.verdict import Verdict

if TYPE_CHECKING:
    from diagnostics.health import Finding


class ContractError(RuntimeError):
    """A step broke a contract, and the watch was asked to raise (`contracts="raise"`). The step has ended: parameters,
    states and records are those after it."""

    finding: "Finding"
    """What was found."""

    def __init__(self, finding: "Finding") -> None:
        super().__init__(f"step {finding.step}: {finding}")
        self.finding = finding


class NonFiniteError(ArithmeticError):
    """A step met NaN or Inf. The message is the verdict's text, what became of the weights, where the evidence is."""

    verdict: Verdict
    """Where the value was born."""

    incident: Path | None
    """Folder with the evidence; None where none was written."""

    is_restored: bool
    """Whether parameters, optimizer states and averages are those before the step."""

    def __init__(
        self,
        verdict: Verdict,
        incident: Path | None = None,
        *,
        is_restored: bool = True,
        has_gradients: bool = False,
        note: str = "",
    ) -> None:
        """`note` takes the place of the evidence's folder where there is none. has_gradients: some were put back."""
        gradients = "and so are the gradients that it added to" if has_gradients else "gradients are cleared"
        state = f"Parameters, optimizer state and averages are as before the step; {gradients}."
        if not is_restored:
            state = (
                "Parameters are NOT as before the step: an optimizer had moved them already, of which this watch "
                "learned only now. Load the last checkpoint. From now on copies are kept, unless undo is `never`."
            )
        tail = f"evidence in {incident}" if incident is not None else note
        super().__init__("\n".join(filter(None, [str(verdict), state, tail])))
        self.verdict = verdict
        self.incident = incident
        self.is_restored = is_restored
