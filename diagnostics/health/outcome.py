"""Rule of how the run's last stage ended."""

from diagnostics.health.rule import Finding, rule
from diagnostics.records import History

MAX_LETTERS = 300  # of a message that may hold a table


@rule(
    "failed-stage",
    threshold="the stage whose result was recorded last did not pass, and no training step was recorded after it",
    source="the stage's own criterion, which its message names",
)
def failed_stage(history: History) -> list[Finding]:
    """A stage that fails before its first step leaves nothing else in the records that another rule could object to."""
    record = history.last_stage
    if record is None or record.get("passed") is True:
        return []
    message = str(record.get("message") or "it says no reason")
    advice = "do what the message says, and run the stage again"
    if history.records("incident"):  # their verdict is the message
        message, advice = message.splitlines()[0], "do what the verdict on it says, and run the stage again"
    message = " ".join(message.split())
    if len(message) > MAX_LETTERS:
        message = f"{message[:MAX_LETTERS]}..."
    evidence = f"{record.get('stage') or 'a stage'} failed: {message}"
    return [Finding("failed-stage", "alarm", record["step"] or None, evidence, advice)]
