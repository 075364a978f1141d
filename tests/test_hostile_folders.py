"""A part of what `python -m tests.hostile` tries, the same part each time: no trial has a fault."""

import pytest

from tests.hostile.attacks import INCIDENT, Attack, all_attacks
from tests.hostile.commands import COMMANDS, Command
from tests.hostile.trial import run_trial

QUICK = [command for command in COMMANDS if command.words[0] != "train" and "again" not in command.words]
KINDS = {
    *("pipe", "device", "link out", "dangling link", "loop", "sparse", "deep brackets", "no text", "escapes", "null"),
    *(
        "folder leads out",
        "folder leads up",
        "verdict's source",
        "pickle",
        "operator",
        "marker",
        "escapes in every text",
    ),
}
OF_OTHERS = 3


def _chosen() -> list[tuple[Attack, Command]]:
    """Each thirteenth of these attacks, and a few of every other kind; the commands in turn."""
    attacks = list(all_attacks())
    chosen = [one for one in attacks if one.kind in KINDS][::13]
    for kind in sorted({one.kind for one in attacks} - KINDS):
        others = [one for one in attacks if one.kind == kind]
        chosen += others[:: -(-len(others) // OF_OTHERS)]
    pairs = []
    for number, attack in enumerate(chosen):
        readers = [command for command in QUICK if command.reads(attack.file)]
        if readers:
            pairs.append((attack, readers[number % len(readers)]))
    return pairs


@pytest.mark.filterwarnings("ignore")  # of libraries, about what they are given
@pytest.mark.parametrize(("attack", "command"), _chosen(), ids=lambda one: ascii(one.name)[:80])
def test_a_hostile_folder_does_no_harm(attack: Attack, command: Command) -> None:
    trial = run_trial(attack, command)
    assert not trial.faults, f"{trial.faults}\n{trial.output[-2000:]}"


def test_the_trials_find_what_they_are_for() -> None:
    """A command that read through a link, wrote through one, or printed an escape would be a fault."""
    from pathlib import Path

    from tests.hostile import trial as module
    from tests.hostile.world import SECRET

    def bad(what: str) -> tuple[str, ...]:
        def act(world: object) -> None:
            del world

        def misbehave(_: object, words: list[str]) -> object:
            del words
            if what == "writes":
                Path("../outside/made").touch()
            elif what == "runs":
                Path("../outside/canary").touch()
            elif what == "raises":
                raise RuntimeError("no line")
            text = {"shows": SECRET, "escapes": "\x1b[31m"}.get(what, "")
            return type("Done", (), {"output": text, "exit_code": 0 if what != "fails" else 9, "exception": None})()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.CliRunner, "invoke", lambda self, app, words: misbehave(self, words))
            return run_trial(Attack("none", f"{INCIDENT}/x", act), COMMANDS[0]).faults

    assert bad("nothing") == ()
    assert any("outside" in fault for fault in bad("writes"))
    assert "code ran" in bad("runs")
    assert bad("shows") == ("shows a secret: the output",)
    assert any("control characters" in fault for fault in bad("escapes"))
    assert bad("fails") == ("exit code 9",)
