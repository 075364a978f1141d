"""Open a data set by its path, whatever its layout."""

from pathlib import Path

import shadowlab
from shadowlab.data import Entry, Index, IndexedDataset, SampleSet, one_line
from shadowlab.errors import MissingDependencyError, UserError
from shadowlab.packs import is_pack, pack_index
from shadowlab.tasks.shadow.benchmark import BenchmarkDataset, benchmark_index
from shadowlab.tasks.shadow.folder import FOLDERS, METADATA, FolderDataset, folder_index
from shadowlab.tasks.shadow.light import RANGES, check_light
from shadowlab.tasks.shadow.pictures import ROLES, read_sample
from shadowlab.tasks.shadow.samples import Sample

EMBEDDED = "embedded"  # the word that names the shipped renders
EMBEDDED_PATH = Path(shadowlab.__file__).parent / "assets" / "renders"

LAYOUTS = (
    "a folder with objects/, masks/, shadows/ and metadata.json, a pack of one (shadowlab data pack), the benchmark as "
    f"a .tar or a folder of .tar files, or the word `{EMBEDDED}`"
)


def open_dataset(path: str | Path, image_size: int) -> SampleSet[Sample]:
    """Open a folder, a pack, a benchmark tar, a folder of tars, or the shipped set (`embedded`).

    Args:
        path: see `LAYOUTS`; write `./embedded` for a folder of that name.
        image_size: S, pixels, a multiple of 8; samples are square.

    Raises:
        UserError: no such layout, or a faulty data set (the first problem and the number of others, one line).
        MissingDependencyError: `embedded`, and this installation has no shipped set.
    """
    root = resolve_path(path)
    if is_pack(root):
        return IndexedDataset(root.resolve().name, root, _packed_index(root), image_size, read_sample)
    if _is_benchmark(root):
        return BenchmarkDataset(root, image_size)
    return FolderDataset(root, image_size, name=EMBEDDED if str(path) == EMBEDDED else None)


def index_dataset(path: str | Path, *, renew: bool = False) -> Index:
    """The index of a data set with all its problems. Raises like `open_dataset` where there is no data set.

    renew: read all names and metadata, even where an index of them is kept.
    """
    root = resolve_path(path)
    if is_pack(root):
        return _packed_index(root, renew=renew)
    return (benchmark_index if _is_benchmark(root) else folder_index)(root, renew=renew)


def _packed_index(root: Path, *, renew: bool = False) -> Index:
    return pack_index(root, ROLES, _packed_fault, renew=renew)


def _packed_fault(entry: Entry) -> str:
    """What makes an entry of a pack no sample of this task."""
    if entry.values is None or len(entry.values) != len(RANGES):
        return "its numbers are not theta, phi and size"
    if missing := [role for role in ROLES if role not in entry.sources]:
        return f"no {missing[0]} picture"
    try:
        theta, phi, size = entry.values
        check_light(theta, phi, size, "its line")
    except UserError as error:
        return str(error)
    return ""


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
    if is_pack(root) or _is_benchmark(root) or _looks_like_folder(root):
        return root
    raise UserError(f"{one_line(str(path))}: not a data set that can be read; give {LAYOUTS}")


def _looks_like_folder(root: Path) -> bool:
    return root.is_dir() and any((root / name).exists() for name in (*FOLDERS.values(), METADATA))


def _is_benchmark(root: Path) -> bool:
    if root.is_dir():
        return not _looks_like_folder(root) and any(root.glob("*.tar"))
    return root.suffix == ".tar"
