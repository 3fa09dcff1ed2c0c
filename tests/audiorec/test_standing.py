"""Why a result is stale, part by part, against the record of what a code fingerprint was made of."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from audiorec import standing
from audiorec.fingerprint import code_parts
from audiorec.runner import Resolver, _record_code, read_code_record
from audiorec.settings import load_settings
from audiorec.standing import differences, failed_with
from audiorec.store import Manifest


@pytest.fixture
def resolver(tmp_path: Path) -> Resolver:
    settings = load_settings(store={"uri": str(tmp_path / "store"), "scratch": str(tmp_path / "scratch")})
    return Resolver(settings, date(2026, 11, 23), extract="aa")


def manifest(resolver: Resolver, **more: Any) -> Manifest:
    """A result of validate that equals what a run would make now, but for `more`."""
    made: dict[str, Any] = {
        "dataset": "validate",
        "key": "2026-11-23",
        "fingerprint": "f",
        "files": {},
        "inputs": {"extract": "aa"},
        "settings": resolver.settings.slice(("time", "validation")),
        "code": resolver.code("validate"),
        "facts": {},
    }
    return Manifest(**{**made, **more})


def test_nothing_differs_from_itself(resolver: Resolver):
    assert differences(resolver, "validate", manifest(resolver)) == []


def test_inputs_and_settings_are_named_with_their_values(resolver: Resolver):
    settings = resolver.settings.slice(("time", "validation"))
    settings["time"] = {**settings["time"], "window_days": "all", "gone": 1}
    del settings["time"]["target_blocks"]
    found = differences(resolver, "validate", manifest(resolver, inputs={"extract": "bb"}, settings=settings))
    assert found == [
        "made anew before it: extract",
        'setting time.gone 1 → absent, time.target_blocks absent → 1, time.window_days "all" → 90',
    ]


def test_code_is_named_by_module_query_and_library(resolver: Resolver, monkeypatch: pytest.MonkeyPatch):
    store, now = resolver.store, code_parts("tasks.validate")
    assert differences(resolver, "validate", manifest(resolver, code="old")) == [
        "code (what it was then is not recorded)"
    ]
    before = {part: dict(values) for part, values in now.items()}
    before["modules"]["tasks.validate"] = "other"
    before["sql"]["gone"] = "x"
    before["libraries"]["duckdb"] = "1.5.0"
    store.add_record("code", "old.json", json.dumps(before).encode())
    assert differences(resolver, "validate", manifest(resolver, code="old")) == [
        "code of tasks.validate",
        "query gone",
        f'library duckdb "1.5.0" → "{now["libraries"]["duckdb"]}"',
    ]
    _record_code(store, "new", "tasks.validate")
    assert read_code_record(store, "new") == now


def test_many_differences_are_counted():
    assert standing._listed("setting", [f"s{n}" for n in range(6)]) == ["setting s0, s1, s2, s3 and 2 more"]


def test_the_last_word_about_a_task_counts():
    def said(*words: tuple[str, str, str]) -> list[dict[str, str]]:
        return [dict(zip(("code", "task_id", "status"), w, strict=True)) | {"data_date": "d"} for w in words]

    failed, again = ("TIMEOUT", "extract", "firing"), ("TASK-OOM", "extract", "firing")
    over = ("RECOVERED", "", "recovered")
    assert failed_with("extract", "d", said(failed, again)) == "TASK-OOM"
    assert failed_with("extract", "d", said(failed, over)) is None
    assert failed_with("extract", "d", said(over, failed)) == "TIMEOUT"
    assert failed_with("extract", "e", said(failed)) is None
    assert failed_with("validate", "d", said(failed)) is None
    assert failed_with("extract", "d", said(("DATA-LATE", "extract", "firing"))) is None
