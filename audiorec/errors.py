"""What can go wrong, by who has to act on it, and the exit code that says so to the launcher."""

from __future__ import annotations

import errno
import re
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of a task's process (sysexits.h where it has a word for it)."""

    OK = 0
    BAD_DATA = 65
    UNAVAILABLE = 69
    MEMORY = 71
    TIMEOUT = 72
    CORRUPT = 74
    BUSY = 75
    BAD_SETTINGS = 78


class AudiorecError(Exception):
    """An expected failure: its message names what was found, what was expected and what to do."""

    exit_code = ExitCode.BAD_DATA
    retryable = False


class BadData(AudiorecError):
    """The source tables (or an artefact made from them) cannot be used; a retry would fail the same way."""


class BadSettings(AudiorecError):
    """A setting or a command line is wrong; a retry would fail the same way."""

    exit_code = ExitCode.BAD_SETTINGS


class Unavailable(AudiorecError):
    """A service or a disk that should answer does not; trying again later may work."""

    exit_code = ExitCode.UNAVAILABLE
    retryable = True


class Busy(AudiorecError):
    """Another process holds the lease of the same work for longer than we wait."""

    exit_code = ExitCode.BUSY
    retryable = True


class Corrupt(AudiorecError):
    """A stored file does not have the bytes its manifest promises."""

    exit_code = ExitCode.CORRUPT


_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|\d+ requested and \d+ written")
"""How libraries say it that raise errors of their own: DuckDB, faiss, safetensors; numpy counts what it could not write."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk has no room left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if not isinstance(error, AudiorecError) and _NO_SPACE.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
