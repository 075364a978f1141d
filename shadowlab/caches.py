"""Cache folders that cannot be written. Imports nothing heavy: torch makes its own while it is imported."""

import os

_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
_USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where getpass looks before the system's list of users


def replace_unusable_caches() -> str:
    """Give torch a temporary folder for what it compiles where it could not make its own.

    The home folder and the other libraries' caches are written only when something is downloaded.

    Returns:
        A sentence about what was replaced; empty where nothing was.

    Raises:
        OSError: there is no temporary folder, either.
    """
    place = os.environ.get(_COMPILED)
    try:
        if place is None:
            return "" if _user_has_name() else _replaced("the user has no name, of which torch makes a folder's")
        os.makedirs(place, exist_ok=True)
        if not os.access(place, os.W_OK | os.X_OK):
            return _replaced(f"{_COMPILED}: {place} is not writable")
    except OSError as error:
        return _replaced(f"{_COMPILED}: {place} cannot be made ({error.strerror})")
    return ""


def _user_has_name() -> bool:
    if any(os.environ.get(name) for name in _USER_NAMES):
        return True
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # a container that runs under any number
        return False
    return True


def _replaced(reason: str) -> str:
    import atexit
    import shutil
    import tempfile

    # A folder of one's own: what lies in it is loaded as code.
    folder = tempfile.mkdtemp(prefix="shadowlab-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[_COMPILED] = folder
    return f"{reason}; a temporary folder takes its place"
