"""The one door through which files are opened, for what comes from somebody else may be anything.

Only regular files are opened: a pipe would be waited for, a device acts when it is opened. What is read has a bound,
and what is written replaces a link instead of following it. Errors are OSErrors whose `strerror` is the reason, or
ValueErrors whose text is one line. Needs the standard library alone; long records are read faster
where orjson is installed.
"""

from diagnostics.files.opening import (
    RefusedFileError,
    is_inside,
    open_file,
    paths_in,
    reason_of,
    require_file,
    require_inside,
)
from diagnostics.files.reading import (
    LONGEST_LINE,
    MOST_BYTES,
    MOST_DEPTH,
    LongLineError,
    parse_json,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    sha256_of,
)
from diagnostics.files.writing import append_to, create, hold, lock_file, remove_tree, replace, replace_text

__all__ = [
    # Opening
    "open_file",
    "require_file",
    "RefusedFileError",
    "reason_of",
    # Staying inside a folder
    "is_inside",
    "require_inside",
    "paths_in",
    # Reading
    "read_bytes",
    "read_text",
    "read_json",
    "parse_json",
    "read_lines",
    "sha256_of",
    "LongLineError",
    "MOST_BYTES",
    "MOST_DEPTH",
    "LONGEST_LINE",
    # Writing
    "append_to",
    "create",
    "hold",
    "lock_file",
    "replace",
    "replace_text",
    "remove_tree",
]
