"""Open a data set by its path; with a data set of its own to validate on, where one is named."""

from pathlib import Path

import shadowlab
from shadowlab.data import Entry, Index, IndexedDataset, Role, one_line
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.packs import is_pack, pack_index
from shadowlab.tasks.insertion.file_list import COLUMNS, ROLES, csv_index
from shadowlab.tasks.insertion.file_list import has_prompts as list_has_prompts
from shadowlab.tasks.insertion.options import InsertionOptions
from shadowlab.tasks.insertion.pictures import place_of, read_sample
from shadowlab.tasks.insertion.samples import InsertionSample
from shadowlab.tasks.validation_set import WithValidation

EMBEDDED = "embedded"  # the word that names the shipped rows
EMBEDDED_PATH = Path(shadowlab.__file__).parent / "assets" / "insertion" / "pairs.csv"

LAYOUTS = (
    f"a CSV file with the columns {', '.join(COLUMNS)}, a pack of one (shadowlab data pack), or the word `{EMBEDDED}`"
)
_COMPARED: tuple[Role, ...] = ("target",)


class InsertionDataset(IndexedDataset[InsertionSample]):
    """Samples of one path."""

    def __init__(self, path: str | Path, image_size: int) -> None:
        """Raises UserError where there is no data set, or it is faulty."""
        root = resolve_path(path)
        name = EMBEDDED if str(path) == EMBEDDED else root.resolve().name
        super().__init__(name, root, index_dataset(path), image_size, read_sample)

    def place_of(self, i: int) -> str:
        """`row 7 of validation.csv`."""
        return f"{place_of(self.entry(i))} of {self.path.name}"


def open_dataset(
    path: str | Path, image_size: int, options: InsertionOptions
) -> InsertionDataset | WithValidation[InsertionSample]:
    """Open a CSV file, a pack or the shipped set (`embedded`), and the validation set that the options name.

    Args:
        path: see `LAYOUTS`.
        image_size: S, pixels, a multiple of 8; samples are square.

    Raises:
        UserError: no such layout, a faulty data set, or a validation set that shows what is in the training set.
        MissingDependencyError: `embedded`, and this installation has no shipped set.
    """
    training = InsertionDataset(path, image_size)
    if options.validation_path is None:
        return training
    validation = InsertionDataset(Path(options.validation_path).expanduser(), image_size)
    permitted = options.validate_on_training_data
    return WithValidation(training, validation, compared=_COMPARED, noun="insertion", permitted=permitted)


def index_dataset(path: str | Path, *, renew: bool = False) -> Index:
    """The index of a data set with all its problems. Raises like `open_dataset` where there is no data set.

    renew: read the file in any case, even where an index of it is kept.
    """
    root = resolve_path(path)
    return pack_index(root, ROLES, _packed_fault, renew=renew) if is_pack(root) else csv_index(root, renew=renew)


def has_prompts(path: str | Path) -> bool:
    """Whether the data set brings embeddings of prompts; cheap, and False where there is none that can be read."""
    try:
        root = resolve_path(path)
    except UserError:
        return False
    return root.is_file() and not is_pack(root) and list_has_prompts(root)


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
