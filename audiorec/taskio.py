"""What a task's `run(settings, inputs, out)` is handed: its inputs, and the place for its output."""

from __future__ import annotations

import functools
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from audiorec.store import Manifest, Store

INTERACTIONS = "interactions"


class Inputs(Mapping[str, Manifest]):
    """The manifests of a task's inputs, by task name, and the date they were made for."""

    def __init__(self, as_of: date, store: Store, manifests: Mapping[str, Manifest]) -> None:
        self.as_of = as_of
        self.store = store
        self._manifests = dict(manifests)

    def __getitem__(self, name: str) -> Manifest:
        return self._manifests[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifests)

    def __len__(self) -> int:
        return len(self._manifests)

    def open(self, task: str, name: str) -> Path:
        """A verified local path of one file of an input."""
        return self.store.open(self._manifests[task], name)

    @functools.cached_property
    def interaction_days(self) -> dict[date, Manifest]:
        """The day partitions that extract lists among its inputs, by day."""
        found = {}
        for name, fingerprint in self._manifests["extract"].inputs.items():
            dataset, _, day = name.partition("/")
            if dataset == INTERACTIONS:
                manifest = self.store.find(dataset, day, fingerprint)
                if manifest is None:
                    from audiorec.errors import Corrupt

                    raise Corrupt(
                        f"the store has no {name} {fingerprint} that extract names; run extract with --force"
                    )
                found[date.fromisoformat(day)] = manifest
        return found

    def interactions(self, first_day: date, last_day: date) -> list[Path]:
        """Verified parquet files of the counted events of the days first_day..last_day."""
        return [
            self.store.open(manifest, "interactions.parquet")
            for day, manifest in sorted(self.interaction_days.items())
            if first_day <= day <= last_day
        ]


@dataclass
class Output:
    """Where a task writes, and how its result becomes visible."""

    dataset: str
    key: str
    fingerprint: str
    store: Store
    folder: Path
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    code: str
    replace: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    _files: dict[str, Path] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """A place for the output file `name`; what is written there is part of the result."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files[name] = path
        return path

    def note(self, text: str) -> None:
        """Say something a reader of the log or of run.json should know."""
        print(text, flush=True)
        self.notes.append(text)

    def _cost(self) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return {"seconds": round(time.monotonic() - self.started, 1), "peak_mb": peak}

    def commit(self, **facts: Any) -> Manifest:
        """Make the result visible; `facts` are figures that the fingerprint determines."""
        return self.store.commit(
            dataset=self.dataset,
            key=self.key,
            fingerprint=self.fingerprint,
            outputs=self._files,
            inputs=self.inputs,
            settings=self.settings,
            code=self.code,
            facts=facts,
            run={**self.run, **self._cost(), "notes": self.notes, "links": self.links},
            replace=self.replace,
        )
