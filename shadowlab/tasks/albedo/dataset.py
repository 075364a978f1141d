"""Open a data set by its path, whatever its layout; with a data set of its own to validate on, where one is named."""

import hashlib
from functools import partial
from pathlib import Path

import shadowlab
from shadowlab.data import Entry, Index, IndexedDataset, Role, one_line
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.packs import is_pack, pack_index
from shadowlab.tasks.albedo.declared import METADATA, read_metadata, require_space
from shadowlab.tasks.albedo.file_list import has_masks as list_has_masks
from shadowlab.tasks.albedo.file_list import list_index
from shadowlab.tasks.albedo.folder import FOLDERS, folder_index
from shadowlab.tasks.albedo.options import AlbedoOptions
from shadowlab.tasks.albedo.pictures import ROLES, Spaces, read_sample
from shadowlab.tasks.albedo.samples import AlbedoSample
from shadowlab.tasks.colour import ColourSpace
from shadowlab.tasks.validation_set import WithValidation

EMBEDDED = "embedded"  # the word that names the shipped renders
EMBEDDED_PATH = Path(shadowlab.__file__).parent / "assets" / "albedo"

LAYOUTS = (
    "a folder with beauty/ and albedo/ (and valid/, metadata.json), a list of pairs (a .txt file with `beauty albedo` "
    f"a line), a pack of either (shadowlab data pack), or the word `{EMBEDDED}`"
)
_COMPARED: tuple[Role, ...] = ("beauty", "albedo")


class AlbedoDataset(IndexedDataset[AlbedoSample]):
    """Samples of one path, in the colour space of the model."""

    def __init__(self, path: str | Path, image_size: int, options: AlbedoOptions) -> None:
        """Raises UserError where there is no data set, it is faulty, or a colour space is not declared."""
        root = resolve_path(path)
        self.spaces = declared_spaces(root, options)
        name = EMBEDDED if str(path) == EMBEDDED else root.resolve().name
        super().__init__(name, root, index_dataset(path), image_size, partial(read_sample, spaces=self.spaces))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of metadata, file sizes and colour spaces, the same wherever the data lie."""
        return hashlib.sha256(f"{super().fingerprint()} {self.spaces}".encode()).hexdigest()


def open_dataset(
    path: str | Path, image_size: int, options: AlbedoOptions
) -> AlbedoDataset | WithValidation[AlbedoSample]:
    """Open a folder, a list, a pack or the shipped set (`embedded`), and the validation set that the options name.

    Args:
        path: see `LAYOUTS`; write `./embedded` for a folder of that name.
        image_size: S, pixels, a multiple of 8; samples are square.

    Raises:
        UserError: no such layout, a faulty data set, an undeclared colour space, or a validation set that shows objects
            of the training set.
        MissingDependencyError: `embedded`, and this installation has no shipped set.
    """
    training = AlbedoDataset(path, image_size, options)
    if options.validation_path is None:
        return training
    validation = AlbedoDataset(Path(options.validation_path).expanduser(), image_size, options)
    return WithValidation(
        training, validation, compared=_COMPARED, noun="albedo", permitted=options.validate_on_training_data
    )


def index_dataset(path: str | Path, *, renew: bool = False) -> Index:
    """The index of a data set with all its problems. Raises like `open_dataset` where there is no data set.

    renew: read all names and metadata, even where an index of them is kept.
    """
    root = resolve_path(path)
    if is_pack(root):
        return pack_index(root, ROLES, _packed_fault, renew=renew)
    return (list_index if root.is_file() else folder_index)(root, renew=renew)


def declared_spaces(root: Path, options: AlbedoOptions) -> Spaces:
    """Raises UserError where a colour space is declared by nobody, or by two who differ."""
    declared = read_metadata(root.parent if root.is_file() else root, []).spaces
    given: dict[str, ColourSpace | None] = {"beauty": options.beauty_space, "albedo": options.albedo_space}
    where = one_line(str(root))
    beauty, albedo = (require_space(declared.get(name), one, name, where) for name, one in given.items())
    return Spaces(beauty, albedo, options.model.space)


def has_masks(path: str | Path) -> bool:
    """Whether the data set keeps valid masks; cheap, and False where there is none that can be read."""
    try:
        root = resolve_path(path)
    except UserError:
        return False
    return list_has_masks(root) if root.is_file() else (root / FOLDERS["valid"]).is_dir()


def resolve_path(path: str | Path) -> Path:
    """The place of a data set; raises UserError where nothing of a known layout lies."""
    if str(path) == EMBEDDED:
        if not EMBEDDED_PATH.is_dir():
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
    looks_like_folder = root.is_dir() and any((root / name).exists() for name in (*FOLDERS.values(), METADATA))
    if is_pack(root) or looks_like_folder or (root.is_file() and root.suffix == ".txt"):
        return root
    raise UserError(f"{one_line(str(path))}: not a data set that can be read; give {LAYOUTS}")


def _packed_fault(entry: Entry) -> str:
    """What makes an entry of a pack no sample of this task."""
    missing = [role for role in ("beauty", "albedo") if role not in entry.sources]
    return f"no {missing[0]} picture" if missing else ""
