"""Open a data set by its path, whatever its layout; with a data set of its own to validate on, where one is named."""

import hashlib
from functools import partial
from pathlib import Path

import shadowlab
from shadowlab.data import Entry, Index, IndexedDataset, Role, one_line
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.packs import is_pack, pack_index
from shadowlab.tasks.editing.edits import Edit
from shadowlab.tasks.editing.folder import folder_index
from shadowlab.tasks.editing.listing import has_inputs as list_has_inputs
from shadowlab.tasks.editing.listing import list_index
from shadowlab.tasks.editing.options import EditingOptions
from shadowlab.tasks.editing.pictures import read_sample
from shadowlab.tasks.editing.samples import EditingSample
from shadowlab.tasks.validation_set import WithValidation

EMBEDDED = "embedded"  # the word that names the shipped lists
EMBEDDED_PATH = Path(shadowlab.__file__).parent / "assets" / "editing"
_COMPARED: tuple[Role, ...] = ("target",)
"""Inputs of one target are one sample's, as far as a split goes."""


def layouts(edit: Edit) -> str:
    """What can be read, in words."""
    folders = " and ".join(f"{role}/" for role in edit.roles if not (role == "input" and edit.makes_input))
    columns = ",".join(role for role in edit.roles if not (role == "input" and edit.makes_input))
    return (
        f"a folder with {folders}, a list (a .csv file with the columns {columns}), a pack of either (shadowlab data "
        f"pack), or the word `{EMBEDDED}`"
    )


class EditingDataset(IndexedDataset[EditingSample]):
    """Samples of one path."""

    def __init__(self, path: str | Path, image_size: int, options: EditingOptions) -> None:
        """Raises UserError where there is no data set, or it is faulty."""
        edit = options.edit
        root = resolve_path(path, edit)
        name = EMBEDDED if str(path) == EMBEDDED else root.resolve().name
        self._made = options.model.painting if edit.makes_input and not has_inputs(path, edit) else ""
        read = partial(read_sample, edit=edit, painting=options.model.painting)
        super().__init__(name, root, index_dataset(path, edit), image_size, read)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of file sizes, objects and gains, and of how inputs are made; the same wherever the data
        lie."""
        return hashlib.sha256(f"{super().fingerprint()} {self._made}".encode()).hexdigest()


def open_dataset(
    path: str | Path, image_size: int, options: EditingOptions
) -> EditingDataset | WithValidation[EditingSample]:
    """Open a folder, a list, a pack or the shipped set (`embedded`), and the validation set that the options name.

    Args:
        path: see `layouts`; write `./embedded` for a folder of that name.
        image_size: S, pixels, a multiple of 8; samples are square.

    Raises:
        UserError: no such layout, a faulty data set, or a validation set that shows what is in the training set.
        MissingDependencyError: `embedded`, and this installation has no shipped set.
    """
    training = EditingDataset(path, image_size, options)
    if options.validation_path is None:
        return training
    validation = EditingDataset(Path(options.validation_path).expanduser(), image_size, options)
    permitted = options.validate_on_training_data
    return WithValidation(training, validation, compared=_COMPARED, noun="the edit", permitted=permitted)


def index_dataset(path: str | Path, edit: Edit, *, renew: bool = False) -> Index:
    """The index of a data set with all its problems. Raises like `open_dataset` where there is no data set.

    renew: read all names and metadata, even where an index of them is kept.
    """
    root = resolve_path(path, edit)
    if is_pack(root):
        return pack_index(root, edit.roles, partial(_packed_fault, edit=edit), renew=renew)
    return (list_index if root.is_file() else folder_index)(root, edit, renew=renew)


def has_inputs(path: str | Path, edit: Edit) -> bool:
    """Whether the data set has pictures that are edited; cheap, and True where they are needed."""
    if not edit.makes_input:
        return True
    try:
        root = resolve_path(path, edit)
    except (UserError, MissingDependencyError):
        return False
    if is_pack(root):
        entries = index_dataset(path, edit).entries
        return bool(len(entries)) and "input" in entries[0].sources
    return list_has_inputs(root, edit) if root.is_file() else (root / "input").is_dir()


def resolve_path(path: str | Path, edit: Edit) -> Path:
    """The place of a data set; raises UserError where nothing of a known layout lies."""
    if str(path) == EMBEDDED:
        found = EMBEDDED_PATH / f"{edit.name}.csv"
        if not found.is_file():
            raise MissingDependencyError(
                f"the data set `{EMBEDDED}` of {edit.name} is not in this installation; install shadowlab again"
            )
        return found
    root = Path(path)
    try:
        exists = root.exists()
    except OSError as error:  # a name too long for the file system, a folder that may not be entered
        where = one_line(str(path))
        raise UserError(f"{where}: cannot be read ({error.strerror}); give {layouts(edit)}") from error
    if not exists:
        raise UserError(f"{one_line(str(path))}: no such data set; give {layouts(edit)}")
    looks_like_folder = root.is_dir() and any((root / name).exists() for name in edit.roles)
    if is_pack(root) or looks_like_folder or (root.is_file() and root.suffix == ".csv"):
        return root
    raise UserError(f"{one_line(str(path))}: not a data set that can be read; give {layouts(edit)}")


def _packed_fault(entry: Entry, *, edit: Edit) -> str:
    """What makes an entry of a pack no sample of this edit."""
    needed = [role for role in edit.roles if not (role == "input" and edit.makes_input)]
    missing = [role for role in needed if role not in entry.sources]
    return f"no {missing[0]} picture" if missing else ""
