"""A contract that every training step keeps, and what is said where one is broken."""

from dataclasses import dataclass

from diagnostics.health import Finding, Severity


@dataclass(frozen=True)
class Contract:
    """A cheap question asked of each step, with what people want to know about it."""

    name: str
    """As findings carry it in `rule`."""
    severity: Severity
    """`alarm` for what spoils the run, `warning` for what is worth a look."""
    threshold: str
    """When it is broken, with its numbers."""
    source: str
    """Where the fault is documented."""
    advice: str
    """What to change."""

    def broken(
        self,
        step: int | None,
        evidence: str,
        *,
        parameter: str | None = None,
        layer: str | None = None,
        subject: str | None = None,
        severity: Severity | None = None,
        advice: str | None = None,
    ) -> Finding:
        """What is found in the step with this 0-based index.

        Args:
            evidence: the numbers. parameter, layer, subject: where; `subject` is an input, an optimizer or a call.
            severity, advice: in place of the contract's own.
        """
        return Finding(
            self.name,
            severity or self.severity,
            step,
            evidence,
            advice or self.advice,
            layer=layer,
            parameter=parameter,
            subject=subject,
        )
