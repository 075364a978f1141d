"""The hosts: who owns the loop, and what of them must be installed."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from diagnostics.files import read_text
from shadowlab.bench.hosts.source import bare, num_added


@dataclass(frozen=True)
class Host:
    """A kind of training loop, in a file of `loops`."""

    name: str
    file: str
    """Module in `loops`; it has `train(net, samples, accumulation, eps, incidents)`."""
    library: str | None = None
    """Import name of what must be installed for it."""
    extra: str | None = None
    """Of shadowlab, which installs it."""
    num_processes: int = 1

    @property
    def missing(self) -> str | None:
        """Why it cannot run here, in words; None where it can."""
        if self.library is None or find_spec(self.library) is not None:
            return None
        return f'{self.library} is not installed: pip install "shadowlab[{self.extra}]"'

    @property
    def num_added(self) -> int:
        """Lines that the watch adds to the loop."""
        return num_added(read_text(self._path))

    def watched(self) -> ModuleType:
        """The loop as it stands in its file."""
        return import_module(f"{__package__}.loops.{self.file}")

    def bare(self) -> ModuleType:
        """The loop without the lines of the watch."""
        module = ModuleType(f"{self.file}_without_watch")
        text = bare(read_text(self._path))
        exec(compile(text, f"{self.file}.py, without the watch", "exec"), vars(module))
        return module

    @property
    def _path(self) -> Path:
        return Path(__file__).parent / "loops" / f"{self.file}.py"


HOSTS = (
    Host("plain loop", "plain"),
    Host("accelerate", "accelerated"),
    Host("diffusers' script", "diffusers_script"),
    Host("Lightning, automatic", "lightning_automatic", "lightning", "lightning"),
    Host("Lightning, manual", "lightning_manual", "lightning", "lightning"),
    Host("transformers' Trainer", "trainer", "transformers", "trainer"),
    Host("torch.compile", "compiled"),
    Host("DDP, 2 processes", "ddp", num_processes=2),
    Host("FSDP2, 2 processes", "fsdp", num_processes=2),
)
