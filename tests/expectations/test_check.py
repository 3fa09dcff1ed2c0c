"""The bridge to Great Expectations: a bound fires, a missing figure fails, words name what was found."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import pandas as pd
import pytest

import expectations
from audiorec.errors import BadData
from audiorec.fingerprint import project_modules
from expectations.check import Check, RowCheck, Suite, evaluate, raise_or_warn
from expectations.reasons import REASONS, column_of, is_fault

ROOM = Path(expectations.__file__).parent


def check(severity="critical", minimum=None, maximum=None, metric="share") -> Check:
    return Check(
        "DQ-X",
        metric,
        "user_id",
        severity,
        "30 of 60 rows",
        "at most 25%",
        "send the id",
        "why not",
        minimum,
        maximum,
    )


@pytest.mark.parametrize(
    ("value", "minimum", "maximum", "passes"),
    [
        (0.25, None, 0.25, True),
        (0.2500001, None, 0.25, False),
        (1, 1, None, True),
        (0, 1, None, False),
        (None, None, 0.25, False),
        (math.nan, None, 0.25, False),
        (math.inf, None, 0.25, False),
    ],
)
def test_bounds_are_inclusive_and_a_figure_that_is_missing_fails(value, minimum, maximum, passes):
    result = evaluate(Suite("events", {"share": value}, [check(minimum=minimum, maximum=maximum)]))
    assert result.success is passes


def test_a_failure_names_table_column_counts_bound_and_remedy():
    result = evaluate(Suite("music_events", {"share": 0.5}, [check(maximum=0.25)]))
    line = "DQ-X music_events.user_id: found 30 of 60 rows; expected at most 25%. Remedy: send the id"
    assert [str(failure) for failure in result.critical] == [line]
    with pytest.raises(BadData, match=re.escape(line)):
        raise_or_warn(result)


def test_a_warning_does_not_raise_and_gives_way_to_the_critical_bound_of_the_same_figure():
    both = [check("critical", maximum=0.25), check("warning", maximum=0.01)]
    mild, bad = (evaluate(Suite("t", {"share": value}, both)) for value in (0.1, 0.5))
    assert [f.severity for f in raise_or_warn(mild)] == ["warning"]
    assert (len(bad.critical), bad.warnings) == (1, [])


ROW_CASES = {
    "not_null": ({}, [1, 2, 3], [1, None, 3], 1),
    "unique": ({}, [1, 2, 3], [1, 1, 3], 2),
    "between": ({"min_value": 0, "max_value": 9}, [0, 5, 9], [0, -1, 10], 2),
    "in_set": ({"value_set": ["stream"]}, ["stream"] * 3, ["stream", "sale", "stream"], 1),
    "matches": ({"regex": "^[A-Z]{2}$"}, ["SE", "DE", None], ["SE", "Sweden", None], 1),
    "lacks": ({"regex": "[\\x00-\\x08]"}, ["a", "b", "c"], ["a\x00", "b", "c"], 1),
    "length": ({"min_value": 1, "max_value": 3}, ["a", "abc", "b"], ["a", "abcd", "b"], 1),
}


@pytest.mark.parametrize("kind", ROW_CASES)
def test_row_checks_count_the_rows_that_break_them(kind):
    arguments, good, bad, count = ROW_CASES[kind]
    row_check = RowCheck("DQ-X", "value", kind, "critical", "so", "mend it", "why not", arguments)
    assert evaluate(Suite("t", {}, [], pd.DataFrame({"value": good}), [row_check])).success
    (failure,) = evaluate(Suite("t", {}, [], pd.DataFrame({"value": bad}), [row_check])).critical
    assert failure.found == f"{count} of 3 sampled rows that are not so"


def test_other_columns_break_the_schema():
    row_check = RowCheck("DQ-X", "", "columns", "critical", "a", "mend", "why", {"column_set": ["a"]})
    assert evaluate(Suite("t", {}, [], pd.DataFrame({"a": [1]}), [row_check])).success
    assert not evaluate(Suite("t", {}, [], pd.DataFrame({"a": [1], "b": [2]}), [row_check])).success


# --- the room --------------------------------------------------------------------------------------------


def codes_in_the_room() -> set[str]:
    return {code for path in ROOM.glob("*.py") for code in re.findall(r'"(DQ-[A-Z-]+)"', path.read_text())}


def test_every_code_has_a_runbook_and_every_runbook_a_code():
    folder = ROOM.parent / "docs" / "runbooks"
    pages = {page.stem for page in folder.glob("DQ-*.md")}
    assert pages - {"DQ-CRITICAL"} == codes_in_the_room()
    for page in sorted(folder.glob("DQ-*.md")):
        text = page.read_text(encoding="utf-8")
        for heading in ("## What you see", "## What is normal", "## What to do", "## How you know it worked"):
            assert heading in text, f"{page.name} lacks {heading}"


def test_every_reason_of_the_sql_has_a_column_and_a_remedy():
    written = set()
    for name in ("typed_events", "judged_events", "visible_audiobooks", "visible_users", "unknown_ids"):
        text = (ROOM.parent / "sql" / f"{name}.sql").read_text()
        written |= set(re.findall(r"THEN '([a-z_0-9]+)'", text)) | set(
            re.findall(r"^    '(unknown_\w+)'", text, re.M)
        )
        written |= set(re.findall(r"'(unknown_\w+)' AS reason", text))
    assert written - {"superseded"} == set(REASONS)
    assert all(column_of(name, "music_events") or column_of(name, "users") for name in REASONS)
    assert not is_fault("too_short")
    assert is_fault("a reason of tomorrow")


@pytest.mark.parametrize("module", ["expectations.graph", "expectations.embeddings"])
def test_what_guards_a_training_imports_nothing_of_the_tables_suites(module):
    assert set(project_modules(module)) <= {module, "expectations", "expectations.check"}


def test_great_expectations_is_imported_inside_functions_only():
    for path in ROOM.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in getattr(node, "names", [])] + [getattr(node, "module", None) or ""]
            assert not any(name.startswith("great_expectations") for name in names), path.name
