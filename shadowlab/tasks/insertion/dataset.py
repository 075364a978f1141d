"""Open a data set by its path; with a data set of its own to validate on, where one is named."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import shadowlab
from shadowlab.data import Entry, Index, IndexedDataset, Role, Source, one_line
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.packs import is_pack, pack_index
from shadowlab.tasks.insertion.file_list import COLUMNS, ROLES, csv_index, prompts_of
from shadowlab.tasks.insertion.options import InsertionOptions
from shadowlab.tasks.insertion.pictures import place_of, read_sample
from shadowlab.tasks.insertion.samples import InsertionSample
from shadowlab.tasks.validation_set import WithValidation

EMBEDDED = "embedded"  # the word that names the shipped rows
EMBEDDED_PATH = Path(shadowlab.__file__).parent / "assets" / "insertion" / "pairs.csv"

LAYOUTS = (
    f"a CSV file with the columns {', '.join(COLUMNS)}, a pack of one (shadowlab data pack), or the word `{EMBEDDED}`"
)
Embedded = Callable[[Collection[str]], Mapping[str, Source]]
_COMPARED: tuple[Role, ...] = ("target",)


class InsertionDataset(IndexedDataset[InsertionSample]):
    """Samples of one path."""

    def __init__(self, path: str | Path, image_size: int, embedded: Embedded | None = None) -> None:
        """Raises UserError where there is no data set, it is faulty, or its prompts cannot be embedded."""
        root = resolve_path(path)
        name = EMBEDDED if str(path) == EMBEDDED else root.resolve().name
        super().__init__(name, root, index_dataset(path), image_size, read_sample)
        texts = {} if is_pack(root) or embedded is None else prompts_of(root)
        files = embedded(set(texts.values())) if texts and embedded is not None else {}
        self._prompts = {code: files[text] for code, text in texts.items()}

    def entry(self, i: int) -> Entry:
        """Where the row has a prompt in words, with the file of its embedding."""
        entry = super().entry(i)
        if not self._prompts or entry.values is None:
            return entry
        return replace(entry, sources={**entry.sources, "prompt": self._prompts[entry.values[1]]})

    def place_of(self, i: int) -> str:
        """`row 7 of validation.csv`."""
        return f"{place_of(self.entry(i))} of {self.path.name}"


def open_dataset(
    path: str | Path, image_size: int, options: InsertionOptions, embedded: Embedded | None = None
) -> InsertionDataset | WithValidation[InsertionSample]:
    """Open a CSV file, a pack or the shipped set (`embedded`), and the validation set that the options name.

    Args:
        path: see `LAYOUTS`.
        image_size: S, pixels, a multiple of 8; samples are square.
        embedded: distinct texts -> the file of each one's embedding; None: prompts in words are not read.

    Raises:
        UserError: no such layout, a faulty data set, or a validation set that shows what is in the training set.
        MissingDependencyError: `embedded`, and this installation has no shipped set.
    """
    training = InsertionDataset(path, image_size, embedded)
    if options.validation_path is None:
        return training
    validation = InsertionDataset(Path(options.validation_path).expanduser(), image_size, embedded)
    permitted = options.validate_on_training_data
    return WithValidation(training, validation, compared=_COMPARED, noun="insertion", permitted=permitted)


def index_dataset(path: str | Path, *, renew: bool = False) -> Index:
    """The index of a data set with all its problems. Raises like `open_dataset` where there is no data set.

    renew: read the file in any case, even where an index of it is kept.
    """
    root = resolve_path(path)
    return pack_index(root, ROLES, _packed_fault, renew=renew) if is_pack(root) else csv_index(root, renew=renew)


def resolve_path(path: str | Path) -> Path:
    """The place of a data set; raises UserError where nothing of a known layout lies."""
    if str(path) == EMBEDDED:
        if not EMBEDDED_PATH.is_file():
            raise MissingDependencyError(
                f"the data set `{EMBEDDED}` is not in this installation; install shadowlab again"
            )
        return EMBEDDED_PATH
    root = Path(path)
    try:
        exists = root.exists()
    except OSError as error:  # a name too long for the file system, a folder that may not be entered
        raise UserError(f"{one_line(str(path))}: cannot be read ({error.strerror}); give {LAYOUTS}") from error
    if not exists:
        raise UserError(f"{one_line(str(path))}: no such data set; give {LAYOUTS}")
    if is_pack(root) or (root.is_file() and root.suffix.lower() == ".csv"):
        return root
    raise UserError(f"{one_line(str(path))}: not a data set that can be read; give {LAYOUTS}")


def _packed_fault(entry: Entry) -> str:
    """What makes an entry of a pack no sample of this task."""
    missing = [column for column, role in COLUMNS.items() if role not in entry.sources]
    return f"no {missing[0]}" if missing else ""
