"""The DAG run by Airflow itself, with the launcher replaced: which date, which arguments, what is seen."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from audiorec.chain import CHAIN

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
DAG_ID = "audiobook_recommender"

PROGRAM = """
import json, sys
from datetime import datetime, timedelta, timezone
from airflow.dag_processing.dagbag import DagBag
from audiorec import launcher

calls = []

def run_task(task, as_of, settings, **options):
    del options["emit"]
    calls.append([task, str(as_of), options])
    return launcher.TaskResult(task, str(as_of), "done", f"m/{task}", f"fp-{task}", {"rows": 3}, "fine")

def source_ready(as_of, settings, **options):
    calls.append(["source_ready", str(as_of), {}])
    return READY

READY = True
launcher.run_task, launcher.source_ready = run_task, source_ready
bag = DagBag(DAGS)
dag = bag.dags["audiobook_recommender"]
BODY
states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
print("ANSWER", json.dumps({"state": str(run.state), "tasks": states, "calls": calls}, default=str))
"""


@pytest.fixture
def run_dag(airflow_environment: dict[str, str]):
    """Run a piece of code that makes a `run` of the DAG, in its own interpreter."""

    def call(body: str) -> dict:
        program = PROGRAM.replace("BODY", textwrap.dedent(body)).replace("DAGS", repr(str(ROOT / "dags")))
        done = subprocess.run(
            [sys.executable, "-c", program], env=airflow_environment, capture_output=True, text=True
        )
        answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
        assert answers, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(answers[0].removeprefix("ANSWER "))

    return call


def test_a_run_by_hand_gives_every_task_its_date_and_params(run_dag):
    answer = run_dag(
        """
        run = dag.test(
            logical_date=datetime(2026, 11, 24, 10, tzinfo=timezone.utc),
            run_conf={"as_of": "2026-11-20", "profile": "smoke", "force": True, "promote": "never"},
        )
        """
    )
    assert answer["state"] == "success"
    assert set(answer["tasks"].values()) == {"success"}
    ran = {task: (as_of, options) for task, as_of, options in answer["calls"]}
    assert next(iter(ran)) == "source_ready"
    assert set(ran) == {"source_ready", *CHAIN}
    assert {as_of for as_of, _ in ran.values()} == {"2026-11-20"}
    common = {"profile": "smoke", "force": True, "promote": "never", "run_type": "manual"}
    common["by"] = "dag_test"  # whoever triggered the run
    assert ran["extract"][1] == {**common, "extract": None}
    for task in CHAIN:
        if task != "extract":  # all see the snapshot that extract made
            assert ran[task][1] == {**common, "extract": "fp-extract"}


def test_the_rollbacks_form_reaches_the_launcher_in_the_name_of_who_triggered_it(run_dag):
    answer = run_dag(
        """
        def run_rollback(settings, *, emit, **options):
            calls.append(["rollback", "", options])
            return launcher.TaskResult("rollback", "2026-11-19", "done", None, None, verdict="rolled back")
        launcher.run_rollback = run_rollback
        dag = bag.dags["audiobook_rollback"]
        run = dag.test(
            logical_date=datetime(2026, 11, 24, 10, tzinfo=timezone.utc),
            run_conf={"reason": "empty shelves", "version": "12", "hold_days": 2},
        )
        """
    )
    assert (answer["state"], answer["tasks"]) == ("success", {"rollback": "success"})
    [[_, _, options]] = answer["calls"]
    assert options.pop("request").startswith("audiobook_rollback/")
    assert options == {"to": "12", "reason": "empty shelves", "hold_days": 2, "who": "dag_test (Airflow)"}


def test_a_backfill_is_about_its_own_day_does_not_wait_and_needs_a_receipt(run_dag):
    """Two things in one run, because a run takes Airflow some ten seconds."""
    answer = run_dag(
        """
        import audiorec.dates as dates

        # dag.test makes manual runs only; a backfill's facts are put in their place.
        day = datetime(2026, 11, 20, tzinfo=timezone.utc)
        facts = dates.RunFacts("backfill", day, day, day + timedelta(days=1), day + timedelta(days=1))
        dates.RunFacts.from_dag_run = classmethod(lambda cls, dag_run: facts)

        whole = launcher.run_task
        def partly(task, *args, **options):
            result = whole(task, *args, **options)
            if task != "evaluate":
                return result
            return launcher.TaskResult(task, result.as_of, "done", None, "fp")
        launcher.run_task = partly
        run = dag.test(logical_date=datetime(2026, 11, 25, 10, tzinfo=timezone.utc))
        """
    )
    assert answer["tasks"].pop("await_sources") == "skipped"
    assert answer["tasks"].pop("receipt") == "failed"  # evaluate left no manifest
    assert set(answer["tasks"].values()) == {"success"}  # the skip does not spread
    assert answer["state"] == "failed"
    assert {as_of for _, as_of, _ in answer["calls"]} == {"2026-11-20"}
    assert {options["run_type"] for _, _, options in answer["calls"]} == {"backfill"}


def test_dag_id_is_the_one_that_the_command_line_talks_to():
    from audiorec.stack import layout

    assert layout.DAG_ID == DAG_ID
