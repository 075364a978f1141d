"""The commands that read a run folder. A new one is one more line of `COMMANDS`."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.hostile.world import GUEST

RUN = str(GUEST)


@dataclass(frozen=True)
class Command:
    """One command line, and what it looks at."""

    words: tuple[str, ...]
    reads: Callable[[str], bool]
    """Whether it reads a file of the run, by its path in it."""
    seconds: float = 60.0
    """After which it hangs."""

    @property
    def name(self) -> str:
        return " ".join(self.words)


def _records(file: str) -> bool:
    return file.startswith(("metrics", "incidents", ".", "config", "stages", "environment")) and "/" not in file


def _any(_: str) -> bool:
    return True


def _incident(file: str) -> bool:
    return file.startswith(("incidents", "checkpoints", ".")) and not file.startswith(".lock")


def _operator(file: str) -> bool:
    return file.startswith("incidents") and file.endswith(("operator.pt", "verdict.json", "step.json", "config.yaml"))


def _model(file: str) -> bool:
    return file == "config.yaml" or file.startswith("checkpoints")


def _training(file: str) -> bool:
    return not file.startswith(("reports/report", "incidents/step-00000005/", "incidents/step-00000007"))


def _evaluation(file: str) -> bool:
    return file.startswith(("judged", "."))


_JUDGED = ("--data", "data", "--steps", "1", "--seeds", "1", "--control", "0", "--device", "cpu", "--out", "judged")
_OWN_OBJECT = ("--object", "data/objects/obj_0000_light_0.png", "--mask", "data/masks/obj_0000_light_0.png")
COMMANDS = (
    Command(("runs",), lambda file: not file.startswith(("samples/", "reports/")) and file.count("/") < 2),
    Command(("health", RUN), _records),
    Command(("inspect", RUN), _records),
    Command(("inspect", "runs/own", "--against", RUN), _records),
    Command(("report", RUN), _any),
    Command(("why", RUN, "--no-counterfactuals"), lambda file: file.startswith(("incidents", "."))),
    Command(("why", RUN, "--only", "operator", "--device", "cpu"), _operator, 180.0),
    Command(("why", RUN, "--only", "again", "--device", "cpu"), _incident, 180.0),
    Command(
        ("tensorboard", RUN, "--rebuild"), lambda file: file.startswith(("metrics", "samples", "tensorboard", "."))
    ),
    Command(("train", "--resume", "--run", "guest", "--max-steps", "4", "--skip-stages"), _training, 180.0),
    Command(("generate", RUN, *_OWN_OBJECT, "--light", "noon", "--device", "cpu", "--out", "drawn.png"), _model, 180.0),
    Command(("evaluate", RUN, *_JUDGED), _model, 180.0),
    Command(("evaluate", "--compare", f"{RUN}/judged", f"{RUN}/judged", "--out", "compared"), _evaluation),
    Command(("export", RUN, "--to", "diffusers", "--out", "exported"), _model, 180.0),
    Command(("config", "show", "--config", f"{RUN}/config.yaml"), lambda file: file == "config.yaml"),
)
