"""Open a data set by its path, whatever its layout; with a data set of its own to validate on, where one is named."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import shadowlab
from shadowlab.data import Entry, Index, IndexedDataset, Role, Source, one_line
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.packs import is_pack, pack_index
from shadowlab.tasks.albedo.colour import ColourSpace
from shadowlab.tasks.albedo.declared import METADATA, read_metadata, require_space
from shadowlab.tasks.albedo.file_list import has_masks as list_has_masks
from shadowlab.tasks.albedo.file_list import list_index
from shadowlab.tasks.albedo.folder import FOLDERS, folder_index
from shadowlab.tasks.albedo.options import AlbedoOptions
from shadowlab.tasks.albedo.pictures import ROLES, Spaces, read_sample
from shadowlab.tasks.albedo.samples import AlbedoSample

EMBEDDED = "embedded"  # the word that names the shipped renders
EMBEDDED_PATH = Path(shadowlab.__file__).parent / "assets" / "albedo"

LAYOUTS = (
    "a folder with beauty/ and albedo/ (and valid/, metadata.json), a list of pairs (a .txt file with `beauty albedo` "
    f"a line), a pack of either (shadowlab data pack), or the word `{EMBEDDED}`"
)
_COMPARED: tuple[Role, ...] = ("beauty", "albedo")
_OF_VALIDATION = "validation "  # begins the ids of a validation set's samples


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


class WithValidation:
    """A training set, and after it one to validate on. A `SampleSet`.

    Attributes:
        held_out: objects of the validation set.
        notices: remarks that the caller should print.
    """

    def __init__(self, training: AlbedoDataset, validation: AlbedoDataset, *, permitted: bool) -> None:
        """Args: permitted: whether both may show the same objects. Raises UserError where they do and may not."""
        self._training, self._validation = training, validation
        self.name = training.name
        self.ids: Sequence[str] = [*training.ids, *(f"{_OF_VALIDATION}{name}" for name in validation.ids)]
        objects = [f"{_OF_VALIDATION}{name}" for name in validation.object_ids]
        self.object_ids: Sequence[str] = [*training.object_ids, *objects]
        self.held_out = frozenset(objects)
        self.shared = shared_objects(training, validation)
        self.notices = [*training.notices, *validation.notices]
        if self.shared and not permitted:
            raise UserError(
                f"task_options.validation_path: {self.shared}; validation would measure memory. Give other data, leave "
                "the option out (objects are held out of data.path), or permit it by --set "
                "task_options.validate_on_training_data=true, which every report then says"
            )
        if self.shared:
            self.notices.append(validated_on_training(self.shared))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> AlbedoSample:
        """Raises as `IndexedDataset`."""
        if i < len(self._training):
            return self._training[i]
        sample = self._validation[i - len(self._training)]
        return replace(sample, id=self.ids[i], object_id=self.object_ids[i])

    def entry(self, i: int) -> Entry:
        if i < len(self._training):
            return self._training.entry(i)
        return replace(self._validation.entry(i - len(self._training)), id=self.ids[i], object_id=self.object_ids[i])

    def fingerprint(self) -> str:
        both = self._training.fingerprint(), self._validation.fingerprint()
        return hashlib.sha256(" ".join(both).encode()).hexdigest()


def validated_on_training(shared: str) -> str:
    """What every report says."""
    return f"VALIDATED ON TRAINING DATA: {shared}; figures of validation measure memory, not albedo"


def shared_objects(training: AlbedoDataset, validation: AlbedoDataset) -> str:
    """What both sets have in common, in words; empty where that is nothing.

    A sample is shared where its beauty or its albedo is in both, to the byte, or where its object has the same name in
    the same folder; elsewhere names say little, for every render begins with obj_0000.
    """
    if training.fingerprint() == validation.fingerprint():
        return f"it is the training set ({len(validation)} samples)"
    same_place = _folder_of(training) == _folder_of(validation)
    names = set(training.object_ids) if same_place else set()
    by_size: dict[tuple[Role, int], list[Source]] = defaultdict(list)
    for i in range(len(training)):
        for role in _COMPARED:
            source = training.entry(i).sources[role]
            by_size[role, source.size].append(source)
    found = [
        name
        for i, name in enumerate(validation.ids)
        if validation.object_ids[i] in names or _is_among(validation.entry(i), by_size)
    ]
    if not found:
        return ""
    first = one_line(found[0])
    return f"{len(found)} of its {len(validation)} samples (first {first}) show what is in the training set"


def _is_among(entry: Entry, by_size: Mapping[tuple[Role, int], Sequence[Source]]) -> bool:
    """Whether a picture of the entry is one of those, to the byte."""
    for role in _COMPARED:
        source = entry.sources[role]
        alike = by_size.get((role, source.size), ())
        if alike and source.read() in (other.read() for other in alike):
            return True
    return False


def _folder_of(dataset: AlbedoDataset) -> Path:
    return (dataset.path.parent if dataset.path.is_file() else dataset.path).resolve()


def open_dataset(path: str | Path, image_size: int, options: AlbedoOptions) -> AlbedoDataset | WithValidation:
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
    return WithValidation(training, validation, permitted=options.validate_on_training_data)


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
