"""How the results of a date stand: done, stale (and why), missing or failed, task by task.

Stale means that there is a result of the date, but of other inputs, settings or code than a run would use now. Why, is
read off the manifest: fingerprints of inputs, values of settings, and the record of what each code fingerprint was
made of, which the runner keeps in the store (`code/FINGERPRINT.json`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from audiorec.chain import CHAIN, TASKS
from audiorec.fingerprint import code_parts
from audiorec.runner import Resolver, read_code_record
from audiorec.settings import Settings
from audiorec.store import Manifest, Store
from audiorec.taskio import INTERACTIONS

State = Literal["done", "stale", "missing", "failed"]
SHOWN = 4
"""Differences of one kind that are named; more are counted."""


@dataclass(frozen=True)
class Standing:
    """One task of one date."""

    as_of: date
    task: str
    state: State
    why: str = ""


def standings(
    settings: Settings, dates: Sequence[date], alerts: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Standing]:
    """Every task of every date, in the order of the chain.

    Args:
        alerts: the record of alerts, oldest first; a task whose last word is an alert without recovery has failed.

    Raises:
        BadData: the source tables cannot be read, so nobody can say what a run would build on.
    """
    for as_of in dates:
        resolver = Resolver(settings, as_of)
        for task in CHAIN:
            yield _standing(resolver, task, alerts)


def _standing(resolver: Resolver, task: str, alerts: Sequence[Mapping[str, Any]]) -> Standing:
    manifest = resolver.manifest(task)
    if manifest is not None:
        failure = manifest.facts.get("failure")
        return Standing(resolver.as_of, task, "failed" if failure else "done", str(failure or ""))
    code = failed_with(task, resolver.key, alerts)
    if code:
        return Standing(resolver.as_of, task, "failed", code)
    others = resolver.store.versions(task, resolver.key)
    if not others:
        return Standing(resolver.as_of, task, "missing")
    # Of several, the one that lacks least: its differences are the shortest way to the present.
    why = min([differences(resolver, task, found) for found in others], key=lambda said: len(said))
    return Standing(resolver.as_of, task, "stale", "; ".join(why))


def failed_with(task: str, data_date: str, alerts: Sequence[Mapping[str, Any]]) -> str | None:
    """Code of the last alert about a task of a date, if no recovery of that date came after it."""
    code = None
    for alert in alerts:
        if alert.get("data_date") == data_date:
            if alert.get("status") == "recovered":
                code = None
            elif alert.get("task_id") == task and alert.get("code") != "DATA-LATE":
                code = str(alert.get("code"))
    return code


def differences(resolver: Resolver, task: str, found: Manifest) -> list[str]:
    """What a result was made of that a run would not use now, in words."""
    inputs = {name: value for name, value in found.inputs.items() if not name.startswith(f"{INTERACTIONS}/")}
    said = []
    changed = _changed(inputs, resolver.inputs(task))
    tables = [name.removeprefix("source/") for name in changed if name.startswith("source/")]
    said += _listed("rows changed in source", tables)
    said += _listed("made anew before it:", [name for name in changed if not name.startswith("source/")])
    expected = _flat(resolver.settings.slice(TASKS[task].settings))
    before = _flat(found.settings)
    said += _listed("setting", [_arrow(n, before, expected) for n in _changed(before, expected)])
    if found.code != resolver.code(task):
        said += _code_differences(resolver.store, found.code, code_parts(TASKS[task].module))
    return said


def _code_differences(store: Store, before: str, now: Mapping[str, Mapping[str, str]]) -> list[str]:
    record = read_code_record(store, before)
    if record is None:
        return ["code (what it was then is not recorded)"]
    said = []
    for part, word in (("modules", "code of"), ("sql", "query"), ("libraries", "library")):
        old, new = record.get(part, {}), now.get(part, {})
        names = _changed(old, new)
        said += _listed(word, [_arrow(n, old, new) for n in names] if part == "libraries" else names)
    return said


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _arrow(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = (json.dumps(side[name]) if name in side else "absent" for side in (before, now))
    return f"{name} {old} → {new}"


def _listed(word: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{word} {', '.join(names[:SHOWN])}{more}"]


def _flat(groups: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}.{field}": value for group, fields in groups.items() for field, value in fields.items()}
