"""The record of everything that was done to a release: moves of aliases, rejections, holds. Nothing is ever replaced.

One file an entry, made exclusively, in `{store}/history-{MODEL}/`. An entry is written *before* what it tells is
done, and answered by a second file when it is: so a process that was killed in between, or an answer that was lost,
leaves an open entry, which the next command settles (`audiorec/release.py`), and never a move that nobody recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from audiorec.errors import Corrupt
from audiorec.store import Store

FORMAT = 1
Action = Literal["promote", "rollback", "reject", "hold", "release_hold", "found"]
"""`found`: the alias was moved outside of this project, by hand in MLflow, say."""
Outcome = Literal["done", "not done"]


@dataclass(frozen=True)
class VersionRef:
    """A version as the record names it."""

    version: str
    as_of: str

    def __str__(self) -> str:
        return f"{self.version} ({self.as_of})"


@dataclass(frozen=True)
class Entry:
    """What was done, by whom and why.

    Attributes:
        at: when it was decided, ISO 8601, UTC.
        alias: which alias moved; empty for a rejection or a hold.
        before, after: where the alias pointed and points; of a rejection, `before` is the rejected version.
        until: end of the hold that came with it, ISO 8601, UTC; None for no hold, "" for one without an end.
        request: whose asking it answers (an Airflow run, say), so that a second try does nothing more.
    """

    action: Action
    at: str
    who: str
    why: str
    alias: str = ""
    before: VersionRef | None = None
    after: VersionRef | None = None
    verdict: str = ""
    until: str | None = None
    request: str = ""


@dataclass(frozen=True)
class Recorded:
    """An entry with its number and, once it is settled, how it ended."""

    number: int
    entry: Entry
    outcome: Outcome | None


class History:
    """The record of one registered model."""

    def __init__(self, store: Store, model: str) -> None:
        self._store = store
        self.folder = f"history-{model}"

    def begin(self, entry: Entry) -> int:
        """Write down what is about to be done; returns the entry's number."""
        plain = {"format": FORMAT, **asdict(entry)}
        data = (json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
        number = max(self._numbers(), default=0)
        while True:
            number += 1
            if self._store.add_record(self.folder, _name(number), data):
                return number

    def finish(self, number: int, outcome: Outcome, at: datetime) -> None:
        """Say how an entry ended; the first answer counts."""
        answer = {"format": FORMAT, "outcome": outcome, "at": at.isoformat(timespec="seconds")}
        self._store.add_record(self.folder, _answer(number), (json.dumps(answer) + "\n").encode())

    def newest_first(self) -> Iterator[Recorded]:
        """All entries, the newest first, read as they are asked for.

        Raises:
            Corrupt: an entry is damaged or of a format of a later version.
        """
        names = set(self._store.record_names(self.folder))
        for number in sorted(self._numbers(names), reverse=True):
            raw = self._read(_name(number))
            answer = self._read(_answer(number)) if _answer(number) in names else {}
            try:
                entry = _entry(raw)
            except (KeyError, TypeError, ValueError) as error:
                raise Corrupt(
                    f"{self._store.root}/{self.folder}/{_name(number)} is no entry of the release history ({error}); "
                    "restore it from a backup, or move it away if it cannot be"
                ) from None
            yield Recorded(number, entry, answer.get("outcome"))

    def _numbers(self, names: set[str] | None = None) -> list[int]:
        found = self._store.record_names(self.folder) if names is None else names
        return [int(name.removesuffix(".json")) for name in found if name.removesuffix(".json").isdigit()]

    def _read(self, name: str) -> dict[str, Any]:
        path = f"{self._store.root}/{self.folder}/{name}"
        try:
            raw = dict(json.loads(self._store.read_record(self.folder, name)))
        except (ValueError, TypeError):
            raise Corrupt(
                f"{path} is not readable; restore it from a backup, or move it away if it cannot be"
            ) from None
        if raw.get("format") != FORMAT:
            raise Corrupt(
                f"{path} has format {raw.get('format')!r}, this version reads {FORMAT}; upgrade audiorec"
            )
        return raw


def _name(number: int) -> str:
    return f"{number:06d}.json"


def _answer(number: int) -> str:
    return f"{number:06d}.answer.json"


def _entry(raw: dict[str, Any]) -> Entry:
    fields = {name: value for name, value in raw.items() if name != "format"}
    if fields["action"] not in get_args(Action):
        raise ValueError(f"action is {fields['action']!r}, expected one of {', '.join(get_args(Action))}")
    for end in ("before", "after"):
        if fields[end] is not None:
            fields[end] = VersionRef(**fields[end])
    return Entry(**fields)
