"""What the DAG promises: its ids, its order, its policies, and that reading it is cheap."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audiorec import launcher
from audiorec.chain import CHAIN
from audiorec.errors import BadSettings
from audiorec.settings import load_settings

ROOT = Path(__file__).parents[2]
DAG_ID = "audiobook_recommender"
HEAVY = ["torch", "torch_geometric", "faiss", "mlflow", "duckdb", "great_expectations", "pandas"]
ALL_TASKS = {"resolve_as_of", "await_sources", *CHAIN, "receipt"}


def test_there_are_exactly_these_dags_and_they_can_be_read(bag):
    assert set(bag.dags) == {DAG_ID, "audiobook_rollback"}
    assert bag.import_errors == {}


def test_its_tasks_are_the_chain_with_a_frame(dag):
    assert set(dag.task_ids) == ALL_TASKS
    assert len(CHAIN) == 11


def test_direct_dependencies(dag):
    """The whole order, written out; an edge more or less is a decision."""
    expected = {
        "resolve_as_of": set(),
        "await_sources": {"resolve_as_of"},
        "extract": {"await_sources"},
        "validate": {"extract"},
        "embed_text": {"validate"},
        "embed_music": {"validate"},
        "build_graph": {"validate"},
        "train_hgnn": {"embed_text", "build_graph"},
        "train_two_tower": {"train_hgnn", "embed_music"},
        "evaluate": {"train_two_tower"},
        "refresh": {"evaluate"},
        "build_index": {"refresh"},
        "promote": {"build_index"},
        "receipt": {"promote"},
    }
    assert {task.task_id: set(task.upstream_task_ids) for task in dag.tasks} == expected


def test_every_input_is_made_before_it_is_read(dag):
    """Held against the chain's own list of inputs, which the tasks really open."""
    for name, task in CHAIN.items():
        before = {upstream.task_id for upstream in dag.get_task(name).get_flat_relatives(upstream=True)}
        assert set(task.inputs) <= before, name
        if name not in ("extract", "validate"):
            assert "validate" in before, f"{name} may not touch data that nobody has judged"


def test_schedule_is_one_utc_day_and_nothing_lies_before_the_start(dag):
    from airflow.sdk import CronDataIntervalTimetable

    assert isinstance(dag.timetable, CronDataIntervalTimetable)
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == ("0 0 * * *", "UTC")
    assert dag.catchup is False
    # Trap 1: a run before the start date is a success without tasks.
    assert dag.start_date == datetime(2000, 1, 1, tzinfo=UTC)
    assert all(task.start_date is None or task.start_date <= dag.start_date for task in dag.tasks)
    assert 1 < dag.max_active_runs <= 4


def test_params_are_typed_and_explained(dag):
    from airflow.sdk.exceptions import ParamValidationError

    params = dag.params
    assert set(params) == {"as_of", "profile", "force", "promote"}
    assert params["as_of"] is None
    assert params["profile"] is None
    assert params["force"] is False
    assert params["promote"] is None
    good = {
        "as_of": ["2026-11-23", None],
        "profile": ["smoke", "standard", "full", None],
        "force": [True, False],
        "promote": ["never", "fresh", "if_better", "force", "override_hold", None],
    }
    bad = {
        "as_of": ["yesterday", "2026-13-01", "20261123", 20261123, ""],
        "profile": ["huge", 1],
        "force": ["yes", 1, None],
        "promote": ["always"],
    }
    for name in good:
        param = params.get_param(name)
        assert len(param.schema["description_md"]) > 40
        shown = param.schema.get("values_display", {})
        assert set(shown) == {str(value).replace("None", "null") for value in param.schema.get("enum", ())}
        for value in good[name]:
            assert param.resolve(value) == value
        for value in bad[name]:
            with pytest.raises(ParamValidationError):
                param.resolve(value)
        param.value = {"force": False}.get(name)
    # The help says which date a logical date means.
    assert "2026-11-24, at any hour, means 2026-11-23" in params.get_param("as_of").schema["description_md"]


def test_everything_is_documented(dag):
    assert "What is normal" in dag.doc_md
    assert "What to click" in dag.doc_md
    for task in dag.tasks:
        assert "**What it does.**" in (task.doc_md or ""), task.task_id


def test_failures_reach_somebody_on_both_levels(dag):
    from audiorec.oncall import callbacks

    assert dag.on_failure_callback == callbacks.run_failed
    assert dag.on_success_callback == callbacks.run_succeeded
    for task in dag.tasks:
        assert list(task.on_failure_callback) == [callbacks.task_failed], task.task_id


def test_limits(dag):
    resources = load_settings().resources
    for name in CHAIN:
        own = timedelta(minutes=resources[name].timeout_minutes)
        limit = dag.get_task(name).execution_timeout
        assert own < limit <= own + timedelta(minutes=10), name
    for task in dag.tasks:
        assert task.execution_timeout is not None, task.task_id
        assert task.pool == "default_pool"  # trap 8: a task of a pool that does not exist waits for ever
        assert not task.depends_on_past  # backfills run in any order


def test_one_training_at_a_time(dag):
    alone = {task.task_id for task in dag.tasks if task.max_active_tis_per_dag == 1}
    assert alone == {"train_hgnn", "train_two_tower", "promote"}


def test_trigger_rules(dag):
    rules = {task.task_id: task.trigger_rule.value for task in dag.tasks}
    assert rules.pop("extract") == "none_failed"  # await_sources is skipped in backfills
    assert rules.pop("receipt") == "all_done"
    assert set(rules.values()) == {"all_success"}


@pytest.mark.parametrize(
    ("returncode", "task", "action", "minutes"),
    [
        (65, "extract", "fail", None),
        (65, "validate", "fail", None),
        (78, "extract", "fail", None),
        (74, "extract", "fail", None),
        (69, "promote", "retry", 2),
        (75, "train_hgnn", "retry", 5),
        (1, "extract", "default", None),
        (-9, "train_hgnn", "default", None),
        (-11, "train_hgnn", "default", None),
    ],
)
def test_retries_by_kind_of_failure(dag, returncode: int, task: str, action: str, minutes: int | None):
    outcome = launcher.Outcome(returncode, None, 1.0, 10, 1000, ())
    failure = launcher.explain(task, None, outcome, launcher.READINESS, "docs/runbooks")
    operator = dag.get_task(task)
    decision = operator.retry_policy.evaluate(failure, try_number=1, max_tries=2)
    assert decision.action.value == action
    assert decision.retry_delay == (timedelta(minutes=minutes) if minutes else None)
    assert operator.retries == 2


def test_contradicting_dates_are_not_tried_again(dag):
    decision = dag.get_task("resolve_as_of").retry_policy.evaluate(BadSettings("no"), 1, 2)
    assert decision.action.value == "fail"


def test_memory_limit_is_not_tried_again_and_a_timeout_is(dag):
    policy = dag.get_task("train_hgnn").retry_policy
    for ended_by, action in (("memory", "fail"), ("timeout", "default")):
        outcome = launcher.Outcome(-9, ended_by, 1.0, 10, 1000, ())
        failure = launcher.explain("train_hgnn", None, outcome, launcher.READINESS, "docs/runbooks")
        assert policy.evaluate(failure, 1, 2).action.value == action


def test_what_was_released_is_an_asset(dag):
    (asset,) = dag.get_task("promote").outlets
    assert (asset.name, asset.uri) == ("audiobook_release", "x-audiorec://release/audiobook_recommender")
    assert [task.task_id for task in dag.tasks if task.outlets] == ["promote"]


def test_the_rollback_is_ready_and_asks_why(bag):
    from airflow.sdk.exceptions import ParamValidationError

    from audiorec.oncall import callbacks

    dag = bag.dags["audiobook_rollback"]
    assert dag.is_paused_upon_creation is False  # a run of a paused DAG waits for ever
    assert dag.max_active_runs == 1
    assert dag.start_date == datetime(2000, 1, 1, tzinfo=UTC)
    assert dag.on_failure_callback == callbacks.run_failed
    (task,) = dag.tasks
    assert list(task.on_failure_callback) == [callbacks.task_failed]
    assert [asset.name for asset in task.outlets] == ["audiobook_release"]
    good = {"reason": ["empty shelves"], "version": [None, "12"], "hold_days": [0, 0.5, 7]}
    bad = {
        "reason": ["", None, 3],
        "version": ["", "0", "-1", "latest", 12, "1 2"],
        "hold_days": [-1, "week", 400],
    }
    assert set(dag.params) == set(good)
    assert not dag.params.get_param("reason").has_value  # nothing filled in is no rollback
    for name in good:
        param = dag.params.get_param(name)
        for value in good[name]:
            assert param.resolve(value) == value
        for value in bad[name]:
            with pytest.raises(ParamValidationError):
                param.resolve(value)


def test_it_survives_serialization(dag):
    """What the UI sees went through JSON."""
    from airflow.serialization.serialized_objects import DagSerialization

    again = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
    assert set(again.task_dict) == ALL_TASKS
    assert set(again.get_task("validate").extra_links) == {"Data Docs", "Runbook"}
    assert set(again.get_task("promote").extra_links) == {"MLflow version", "Runbook"}


def test_reading_it_is_cheap_and_loads_nothing_heavy(airflow_environment: dict[str, str]):
    """In a fresh interpreter, as every task start does it: own imports under a second, nothing heavy.

    The best of three: what else the machine does at the time is none of the DAG's making.
    """
    program = f"""
import sys, time
import airflow.sdk, airflow.dag_processing.dagbag
began = time.perf_counter()
bag = airflow.dag_processing.dagbag.DagBag({str(ROOT / "dags")!r})
seconds = time.perf_counter() - began
import json
print("ANSWER", json.dumps([sorted(bag.dags), seconds, [m for m in {HEAVY} if m in sys.modules]]))
"""
    took = []
    while len(took) < 3 and min(took, default=1.0) >= 1.0:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=airflow_environment,
            check=True,
            capture_output=True,
            text=True,
        )
        answer = next(line for line in done.stdout.splitlines() if line.startswith("ANSWER "))
        dags, seconds, heavy = json.loads(answer.removeprefix("ANSWER "))
        assert dags == [DAG_ID, "audiobook_rollback"]
        assert heavy == []
        took.append(seconds)
    assert min(took) < 1.0


def test_broken_settings_do_not_hide_the_dag(airflow_environment: dict[str, str]):
    """It stays in the UI, and its tasks say what is wrong."""
    env = {**airflow_environment, "AUDIOREC_HGNN__MARGIN": "none"}
    program = f"""
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({str(ROOT / "dags")!r})
assert not bag.import_errors, bag.import_errors
assert all(task.execution_timeout for task in bag.dags[{DAG_ID!r}].tasks)
"""
    subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True)


@pytest.mark.parametrize("dag_id", [DAG_ID, "audiobook_rollback"])
def test_the_dag_file_holds_no_logic_of_tasks(dag_id: str):
    text = Path(ROOT / "dags" / f"{dag_id}.py").read_text(encoding="utf-8")
    for word in ("import duckdb", "import torch", "SELECT ", "subprocess", "os.environ"):
        assert word not in text
