"""What is never used or shown: data of users who are to be forgotten, and titles that are hidden.

Two text files, one id a line, named by the settings (`serving.forgotten_file`, `serving.hidden_file`) and read again
when they change, so that an answer respects a new line within a second. A file that is configured and cannot be read
closes: as long as it stays so, nobody's data is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from audiorec.errors import BadSettings
from audiorec.recommend import Asked
from audiorec.settings import Serving

_LOOK_SECONDS = 0.5


class IdFile:
    """Ids of a text file, one a line; blank lines and lines with # are left out.

    Raises:
        BadSettings: it cannot be read when it is opened.
    """

    def __init__(self, path: str, setting: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._setting, self._clock = Path(path), setting, clock
        self._looked, self._stamp = -1e9, (0, 0)
        self._ids: frozenset[str] | None = None
        self._last: frozenset[str] = frozenset()
        if self.ids() is None:
            raise BadSettings(
                f"{setting} is {path!r}, which cannot be read; make the file (it may be empty), or leave the setting out"
            )

    def ids(self) -> frozenset[str] | None:
        """The ids as the file has them now; None while it cannot be read."""
        if self._clock() - self._looked < _LOOK_SECONDS:
            return self._ids
        self._looked = self._clock()
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if self._ids is None or stamp != self._stamp:
                lines = self._path.read_text(encoding="utf-8").splitlines()
                self._ids = frozenset(
                    line.strip() for line in lines if line.strip() and not line.startswith("#")
                )
                self._stamp, self._last = stamp, self._ids
        except (OSError, UnicodeDecodeError):
            self._ids = None
        return self._ids

    def last(self) -> frozenset[str]:
        """The ids when the file could last be read."""
        self.ids()
        return self._last


class Withheld:
    """Applies both lists to requests.

    Args:
        settings: where the lists are.
        forgotten: asked as well for each user id; the place for tombstones of another form.
    """

    def __init__(self, settings: Serving, forgotten: Callable[[str], bool] | None = None) -> None:
        self._hidden = _opened(settings.hidden_file, "serving.hidden_file")
        self._forgotten = _opened(settings.forgotten_file, "serving.forgotten_file")
        self._also_forgotten = forgotten

    def is_forgotten(self, user_id: str) -> bool:
        """Whether nothing that the release holds of a user may be used."""
        if self._forgotten is not None:
            ids = self._forgotten.ids()
            if ids is None or user_id in ids:
                return True
        return self._also_forgotten is not None and self._also_forgotten(user_id)

    def hidden(self) -> frozenset[str]:
        """Audiobooks that nobody is shown; the last list that could be read."""
        return self._hidden.last() if self._hidden is not None else frozenset()

    def apply(self, asked: Asked) -> Asked:
        """The request as it may be answered: a forgotten user is a stranger, hidden titles are left out."""
        hidden = self.hidden()
        if asked.user_id is not None and self.is_forgotten(asked.user_id):
            asked = replace(asked, user_id=None)
        return replace(asked, exclude=[*asked.exclude, *sorted(hidden)]) if hidden else asked


def _opened(path: str | None, setting: str) -> IdFile | None:
    return None if path is None else IdFile(path, setting)
