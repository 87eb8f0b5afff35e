"""Folder of compiled functions: numba cannot import them if no cache folder is writable."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

_VARIABLE = "NUMBA_CACHE_DIR"


def ensure_cache() -> None:
    """Give numba a temporary folder if neither the package nor the home folder can be written to.

    This happens on clusters with read-only software and homes. No other user can write to the
    folder, because the code in it is executed.
    """
    # Not Path.home(), which fails for a user of a container who has no home folder.
    user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    usual = Path(__file__).parent / "__pycache__", user / "numba"
    if os.environ.get(_VARIABLE) or any(
        _writable(folder) for folder in usual if folder.is_absolute()
    ):
        return
    who = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"dipy_spinverse_{who}"
    if not _private(folder):
        folder = Path(tempfile.mkdtemp(prefix="dipy_spinverse_"))
    os.environ[_VARIABLE] = str(folder)
    if "numba" in sys.modules:  # which has read the variable already
        sys.modules["numba"].config.CACHE_DIR = str(folder)


def _writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _private(folder):
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError:
        return False
    own = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return own and folder.is_dir() and not folder.is_symlink() and not about.st_mode & 0o022
