"""Fingerprints: an edit makes stale what it can change, and nothing else.

The edits are made on a copy of the project, in one process that computes all fingerprints after each of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from audiorec import fingerprint as fp
from audiorec.chain import CHAIN
from audiorec.settings import load_settings

ROOT = Path(__file__).parents[2]
ROOMS = ("audiorec", "tasks", "models", "expectations", "sql", "dags", "docs")
TASKS = [name for name in CHAIN if (ROOT / "tasks" / f"{name}.py").exists()]

CHILD = """
import importlib.metadata, json, sys
from datetime import date
from pathlib import Path

from audiorec import fingerprint as fp
from audiorec.runner import Resolver
from audiorec.settings import load_settings

assert Path(fp.__file__).is_relative_to(Path.cwd()), fp.__file__
edits, tasks = json.loads(sys.argv[1])
settings = load_settings(store={"uri": "store", "scratch": "scratch"})
real_version = importlib.metadata.version


def fingerprints():
    for name in ("_import_graph", "_parsed", "module_hash", "code_parts"):
        getattr(fp, name).cache_clear()
    resolver = Resolver(settings, date(2026, 11, 23))
    resolver._source = {"source/events": "a", "source/users": "b"}
    return {
        "chain": {task: resolver.fingerprint(task) for task in tasks},
        "code": {task: resolver.code(task) for task in tasks},
    }


found = {"nothing": fingerprints()}
for name, edit in edits.items():
    if "library" in edit:
        importlib.metadata.version = lambda d: "0.0.0" if d == edit["library"] else real_version(d)
    else:
        path = Path(edit["file"])
        before = path.read_text() if path.exists() else None
        text = before or ""
        if "old" in edit:
            assert edit["old"] in text, (name, edit["old"])
            text = text.replace(edit["old"], edit["new"], 1)
        path.write_text(text + edit.get("append", ""))
    try:
        found[name] = fingerprints()
    except Exception as error:
        found[name] = {"error": f"{type(error).__name__}: {error}"}
    finally:
        importlib.metadata.version = real_version
        if "file" in edit and before is None:
            path.unlink()
        elif "file" in edit:
            path.write_text(before)
assert fingerprints() == found["nothing"], "every edit was taken back"
print(json.dumps(found))
"""

EDITS: dict[str, dict[str, str]] = {
    "a new page in docs": {"file": "docs/new_page.md", "append": "# New\n"},
    "a line in the README": {"file": "README.md", "append": "\nMore.\n"},
    "the DAG": {"file": "dags/audiobook_recommender.py", "append": "\nMORE = 1\n"},
    "a comment in the sampler": {"file": "models/sampler.py", "append": "\n# A comment.\n"},
    "a docstring of the sampler": {"file": "models/sampler.py", "old": '"""', "new": '"""Reworded. '},
    "a docstring of a function": {
        "file": "audiorec/cuts.py",
        "old": '"""Lay the cuts of a run.',
        "new": '"""Lay every cut of a run.',
    },
    "blank lines and brackets": {"file": "models/sampler.py", "append": "\n\n\n"},
    "a comment in SQL": {"file": "sql/judged_events.sql", "old": "-- ", "new": "-- Reworded: "},
    "the description of a setting": {
        "file": "audiorec/settings.py",
        "old": "history that a cut sees",
        "new": "history",
    },
    "how a task is run": {"file": "audiorec/runner.py", "append": "\nMORE = 1\n"},
    "how files are stored": {"file": "audiorec/store.py", "append": "\nMORE = 1\n"},
    "the sampler": {"file": "models/sampler.py", "append": "\nMORE = 1\n"},
    "the losses": {"file": "models/losses.py", "append": "\nMORE = 1\n"},
    "the features": {"file": "audiorec/features.py", "append": "\nMORE = 1\n"},
    "the protocol": {"file": "audiorec/experiments/protocol.py", "append": "\nMORE = 1\n"},
    "a query of extract": {"file": "sql/judged_events.sql", "append": "\nLIMIT 10\n"},
    "a query of the catalogue": {"file": "sql/visible_users.sql", "append": "\nLIMIT 10\n"},
    "a query of validate": {"file": "sql/quality_users.sql", "append": "\nLIMIT 10\n"},
    "a suite of validate": {"file": "expectations/users.py", "append": "\nMORE = 1\n"},
    "a query whose name is computed": {
        "file": "audiorec/digests.py",
        "append": '\nfor _name in ("days",):\n    read_sql(_name)\n',
    },
    "a query whose name is formatted": {
        "file": "audiorec/digests.py",
        "append": '\nread_sql(f"{UNDATED}")\n',
    },
    "a query named by keyword": {"file": "audiorec/digests.py", "append": '\nread_sql(name="days")\n'},
    "another torch": {"library": "torch"},
    "another DuckDB": {"library": "duckdb"},
    "another plotting library": {"library": "matplotlib"},
    "a library that nothing uses": {"library": "hypothesis"},
}


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Fingerprints after each edit, by the edit's name."""
    copy = tmp_path_factory.mktemp("copy")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", copy)
    env = {k: v for k, v in os.environ.items() if not k.startswith("AUDIOREC_")} | {"PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", CHILD, json.dumps([EDITS, TASKS])],
        cwd=copy,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def changed(after: dict[str, Any], edit: str, what: str = "chain") -> set[str]:
    before, now = after["nothing"][what], after[edit][what]
    return {task for task in TASKS if before[task] != now[task]}


def downstream(*names: str) -> set[str]:
    """The tasks and all that read them, directly or not, by the chain's own inputs."""
    found = set(names)
    for task in CHAIN.values():
        if found & set(task.inputs):
            found.add(task.name)
    return found & set(TASKS)


@pytest.mark.long
@pytest.mark.parametrize(
    "edit",
    [
        "a new page in docs",
        "a line in the README",
        "the DAG",
        "a comment in the sampler",
        "a docstring of the sampler",
        "a docstring of a function",
        "blank lines and brackets",
        "a comment in SQL",
        "the description of a setting",
        "how a task is run",
        "how files are stored",
        "a library that nothing uses",
    ],
)
def test_what_cannot_change_a_result_makes_nothing_stale(after: dict[str, Any], edit: str):
    assert changed(after, edit) == set()


@pytest.mark.long
@pytest.mark.parametrize(
    ("edit", "first"),
    [
        ("the sampler", ("train_hgnn",)),
        ("the losses", ("train_hgnn", "train_two_tower")),
        ("the features", ("train_two_tower",)),
        # refresh shares the module that rebuilds judged features with evaluate; it costs seconds.
        ("the protocol", ("evaluate", "refresh")),
        ("a query of extract", ("extract",)),
        ("a query of the catalogue", ("extract",)),
        ("a query of validate", ("validate",)),
        ("a suite of validate", ("validate",)),
        ("another torch", ("embed_text", "train_hgnn")),
        ("another DuckDB", ("extract",)),
        ("another plotting library", ("evaluate",)),
    ],
)
def test_an_edit_makes_stale_the_tasks_that_use_it_and_all_that_follow_and_no_more(
    after: dict[str, Any], edit: str, first: tuple[str, ...]
):
    stale = changed(after, edit)
    assert stale == downstream(*first)
    assert stale, "the edit must make something stale"


@pytest.mark.long
def test_an_edited_query_changes_the_code_of_exactly_its_readers(after: dict[str, Any]):
    for name, edit in (("judged_events", "a query of extract"), ("quality_users", "a query of validate")):
        reading = [
            p
            for room in ROOMS
            for p in (ROOT / room).rglob("*.py")
            if f'read_sql("{name}")' in p.read_text(encoding="utf-8")
        ]
        modules = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in reading}
        assert modules
        readers = {task for task in TASKS if modules & set(fp.project_modules(f"tasks.{task}"))}
        assert changed(after, edit, "code") == readers


@pytest.mark.long
@pytest.mark.parametrize(
    "edit", ["a query whose name is computed", "a query whose name is formatted", "a query named by keyword"]
)
def test_a_query_that_the_fingerprint_cannot_follow_is_refused(after: dict[str, Any], edit: str):
    assert after[edit]["error"] == (
        "TypeError: audiorec.digests: read_sql needs a literal name, so that the fingerprint can follow it"
    )


def test_every_query_of_the_project_is_in_some_task_s_code():
    named = {name for task in TASKS for name in fp.code_parts(f"tasks.{task}")["sql"]}
    assert named == {path.stem for path in (ROOT / "sql").glob("*.sql")}


def test_code_parts_name_the_libraries_with_the_versions_that_are_installed():
    from importlib.metadata import version

    libraries = fp.code_parts("tasks.train_hgnn")["libraries"]
    assert libraries["torch"] == version("torch")
    assert libraries["numpy"] == version("numpy")
    assert "duckdb" not in fp.code_parts("tasks.train_hgnn")["libraries"]
    assert fp.code_parts("tasks.extract")["libraries"]["duckdb"] == version("duckdb")


def test_no_task_s_code_holds_airflow_or_plumbing():
    for task in TASKS:
        modules = set(fp.code_parts(f"tasks.{task}")["modules"])
        assert f"tasks.{task}" in modules
        assert not modules & fp.PLUMBING
        assert not any(
            name.startswith(("audiorec.oncall", "audiorec.stack", "audiorec.simulator")) for name in modules
        )


# --- the hash itself ------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(value=st.dictionaries(st.text(max_size=3), values, max_size=4))
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict):
    assert fp.digest(value) == fp.digest(dict(reversed(value.items())))


def test_a_fingerprint_tells_inputs_settings_and_code_apart():
    one = fp.fingerprint({"a": "1"}, {"b": 2}, "c")
    others = [
        fp.fingerprint({"a": "2"}, {"b": 2}, "c"),
        fp.fingerprint({"b": "1"}, {"b": 2}, "c"),
        fp.fingerprint({"a": "1"}, {"b": 3}, "c"),
        fp.fingerprint({"a": "1"}, {"b": 2}, "d"),
        fp.fingerprint({}, {"a": "1", "b": 2}, "c"),
    ]
    assert len({one, *others}) == 6


def test_a_setting_of_another_task_or_of_a_place_changes_no_fingerprint():
    from datetime import date

    from audiorec.runner import Resolver

    def fingerprints(**groups: Any) -> dict[str, str]:
        resolver = Resolver(load_settings(**groups), date(2026, 11, 23))
        resolver._source = {"source/events": "a"}
        return {task: resolver.fingerprint(task) for task in TASKS}

    before = fingerprints()
    where = fingerprints(
        store={"uri": "elsewhere"},
        mlflow={"uri": "http://127.0.0.1:1"},
        resources={"extract": {"threads": 7}},
        duckdb={"memory_mb": 500},
    )
    assert where == before
    for group, field, first in (
        ("hgnn", {"seed": 9}, "train_hgnn"),
        ("graph", {"top_k": 9}, "build_graph"),
        ("evaluation", {"depth": 50}, "evaluate"),
    ):
        now = fingerprints(**{group: field})
        assert {task for task in TASKS if now[task] != before[task]} == downstream(first)


SQL = "SELECT a, -- the first\n    '-- no comment, it''s text' AS b,\nFROM t -- done\n"


def test_a_query_s_comments_are_left_out_and_text_in_quotes_is_not():
    assert fp.sql_hash(SQL) == fp.sql_hash(
        "-- Grain: a row.\nSELECT a,\n\n    '-- no comment, it''s text' AS b,\nFROM t\n"
    )
    assert fp.sql_hash(SQL) != fp.sql_hash(SQL.replace("no comment", "a comment"))
    assert fp.sql_hash(SQL) != fp.sql_hash(SQL.replace("FROM t", "FROM u"))
    assert fp.sql_hash('SELECT "a--b" FROM t') != fp.sql_hash('SELECT "a')
