"""Progress of long work: a line in the log now and then, and a small file that the live table reads."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

PROGRESS_VARIABLE = "AUDIOREC_PROGRESS"


class Progress:
    """Count steps of one piece of work; cheap to call in a loop."""

    def __init__(self, total: int | None, unit: str, every_seconds: float = 10.0) -> None:
        self.total, self.unit, self.every = total, unit, every_seconds
        self.done = 0
        self._file = os.environ.get(PROGRESS_VARIABLE)
        self._wrote = 0.0
        self._logged = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` says what the eye wants to see (a loss, a date)."""
        self.set(self.done + steps, note)

    def set(self, done: int, note: str = "") -> None:
        """So many are done now."""
        self.done = done
        clock = time.monotonic()
        if self._file and (clock - self._wrote > 0.5 or done == self.total):
            self._wrote = clock
            target = Path(self._file)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            temporary.write_text(
                json.dumps({"done": done, "total": self.total, "unit": self.unit, "note": note})
            )
            temporary.replace(target)
        if clock - self._logged > self.every:
            self._logged = clock
            of = f" of {self.total}" if self.total else ""
            print(f"{done}{of} {self.unit} {note}".rstrip(), flush=True)
