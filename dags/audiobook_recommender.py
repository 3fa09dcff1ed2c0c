"""The daily 2T-HGNN audiobook recommender: from source tables to a released version.

Only wiring is here: ids, schedule, Params, order, texts. What a task does is in `tasks/NAME.py`; how it
is run (as a child process, watched) in `audiorec/launcher.py`; what a failure says and to whom in
`audiorec/oncall/`. Parsing this file must stay cheap: every task start parses it again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow.sdk import (
    DAG,
    BaseOperator,
    BaseOperatorLink,
    BaseSensorOperator,
    Context,
    CronDataIntervalTimetable,
    ExceptionRetryPolicy,
    Param,
    PokeReturnValue,
    RetryAction,
    RetryRule,
)
from airflow.sdk.exceptions import AirflowSkipException

from audiorec import launcher
from audiorec.assets import RELEASE
from audiorec.chain import CHAIN
from audiorec.dates import RunFacts, resolve_as_of
from audiorec.errors import BadSettings
from audiorec.oncall import callbacks
from audiorec.oncall.pages import browsable, ui_address, with_runbooks
from audiorec.oncall.receipt import NoReceipt, receipt, receipt_table
from audiorec.settings import PROFILES, PROMOTE_WORDS, TaskResources, load_settings

LINKS = {
    "validate": ("Data Docs",),
    "train_hgnn": ("MLflow run",),
    "train_two_tower": ("MLflow run",),
    "evaluate": ("MLflow run",),
    "promote": ("MLflow version",),
}
"""Buttons under Details of a task, beside Runbook for a failed one; their addresses come with its result."""

AS_OF = "{{ ti.xcom_pull(task_ids='resolve_as_of') }}"
"""Every task takes the run's date from the first one: see traps 1-3 in docs/architecture.md."""

SOURCES_POKE = timedelta(minutes=5)
SOURCES_GIVE_UP_AFTER = timedelta(hours=6)
TIMEOUT_MARGIN = timedelta(minutes=5)
"""Airflow's own limit lies this far above the launcher's, which leaves the better message."""

ONE_AT_A_TIME = frozenset({"train_hgnn", "train_two_tower", "promote"})
"""Trainings want the whole machine; the registry's alias has no compare-and-set."""

DAG_DOC = """
### Audiobook recommendations, once a day

Turns the day's interaction tables into a registered, gated and reversible release: item embeddings from a
heterogeneous GNN on the co-listening graph, a two-tower model on top, a nearest-neighbour index.

#### Which day
A run is about one date, `as_of`, the last day of data (UTC). The daily run that starts at
2026-11-24 00:00 is about 2026-11-23; a backfill of 2026-11-23 too. By hand, give `as_of` in the form; left
empty it means the last complete day before the logical date, so an untouched form means yesterday.
The first task, `resolve_as_of`, shows the date that the run took.

#### What is normal
- The same date again: every task says *up to date* within seconds, and no new version is made.
- `await_sources` waits (it is *up for reschedule* in between) until the day's tables are there; it is
  skipped in backfills. After 15 minutes it alerts, and after 6 hours the run goes on with what there is.
- `promote` may end well without a promotion: its verdict says why. The old version goes on serving.

#### What to click
- *A task is red:* open its log; the last lines say what happened, what to do and which runbook. Then **Clear
  task** with *Downstream*.
- *Another date:* **Trigger**, with `as_of`. *Many dates:* **Trigger > Backfill**; leave `as_of` empty there.
- *Build something again although nothing changed:* **Trigger** with `force`.
- *What is served is bad:* the DAG **audiobook_rollback**, **Trigger**.

Nothing here reads "the latest" of anything, so runs of several dates may overlap, in any order.
"""

TASK_DOCS = {
    "resolve_as_of": """
- **What it does.** Decides which day the run is about, once; all other tasks are handed its answer.
- **What is normal.** A second or two, and one date under *Storage > XCom*.
- **If it is red.** The run's dates contradict each other; the message says which. Trigger again with `as_of`.
""",
    "await_sources": """
- **What it does.** Looks whether the source tables have rows of the day. It holds no worker while it waits.
- **What is normal.** Green at once, or *up for reschedule* for a while after midnight. Skipped in
  backfills. In runs by hand it looks once and goes on, with a warning in its log.
- **If the tables are late.** After 15 minutes an alert `DATA-LATE` goes out; the run goes on by itself
  when they arrive, and after 6 hours without them (`validate` then judges what there is).
""",
    "extract": """
- **What it does.** Reads the source tables into typed, deduplicated partitions, one an event day, and the
  catalogue, users and first dates beside them. What it sets aside is in `rejects`, with reason and count.
- **What is normal.** A new date extracts one new day; the others are found in the store.
- **If it is red.** `BAD-DATA` names the table and column. Mend the source, Clear with downstream.
""",
    "validate": """
- **What it does.** Great Expectations suites on everything extracted, and drift of the day against the
  days before.
- **What is normal.** Warnings in the verdict: they are recorded and stop nothing.
- **If it is red.** `DQ-CRITICAL`: nothing was trained on these rows. Open **Data Docs** (the
  link in the log, or the button under Details), mend or set aside the rows at their source, Clear `extract`
  with downstream: `validate` alone would judge the same rows again.
""",
    "embed_text": """
- **What it does.** Sentence-BERT vectors of title and description.
- **What is normal.** The first date encodes the whole catalogue, later ones only new and changed titles.
""",
    "embed_music": """
- **What it does.** Vectors of artists (or tracks) from what users listened to before the train cut.
- **What is normal.** Users without music get a flag and no vector.
""",
    "build_graph": """
- **What it does.** The co-listening graph of audiobooks and podcasts at each cut, users counted on each edge.
- **What is normal.** Titles without an edge stay in it; they get their embedding from titles that read alike.
""",
    "train_hgnn": """
- **What it does.** Trains the heterogeneous GNN; embeddings of every title at every cut.
- **What is normal.** The longest task. One at a time, over all runs: another run's waits as *scheduled*.
  Killed and tried again it says from which checkpoint it goes on. Curves are in MLflow (button under Details).
""",
    "train_two_tower": """
- **What it does.** Trains the user tower and the audiobook tower, with and without the HGNN's vectors.
- **What is normal.** One at a time, over all runs. Curves are in MLflow (button under Details).
""",
    "evaluate": """
- **What it does.** Judges the weights on the hold-out: HR@10, MRR, coverage, tail, in two panels, beside
  popularity.
- **What is normal.** Segments under 200 users are shown and not judged.
""",
    "refresh": """
- **What it does.** The judged weights on everything known at `as_of`: item vectors, user features, popularity.
""",
    "build_index": """
- **What it does.** The nearest-neighbour index; its recall against exact search is measured.
- **If it is red.** Recall below the limit: the index's settings do not suit the catalogue (`[index]`).
""",
    "promote": """
- **What it does.** Registers the version in MLflow, scores it against the champion and moves the alias, or not.
- **What is normal.** *Not promoted* with a reason: the old version goes on serving. Backfills register
  only. It runs again even if all else is up to date, because the champion may have changed.
""",
    "receipt": """
- **What it does.** Checks that every task left a manifest of the run's date, and sums the run up (log, and
  *Storage > XCom*).
- **If it is red** and all else is green: `NO-RECEIPT`, a task was skipped or marked by hand. Clear that
  task with downstream. Red after a red task is only its echo.
""",
}

PARAMS = {
    "as_of": Param(
        None,
        type=["null", "string"],
        format="date",
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        title="As of: last day of data (UTC)",
        description_md=(
            "Only for runs by hand. Empty: the last complete UTC day before the logical date, so a "
            "logical date of 2026-11-24, at any hour, means 2026-11-23. **Leave it empty in a backfill**: "
            "there each run is about its own day, and a date here makes it fail."
        ),
    ),
    "profile": Param(
        None,
        type=["null", "string"],
        enum=[None, *PROFILES],
        values_display={
            "null": "as in the settings file",
            "smoke": "smoke: minutes, to see that all works",
            "standard": "standard: the normal one",
            "full": "full: longer training",
        },
        title="Profile: amount of work",
        description_md=(
            "How long to train and how many users to judge. Each profile has results of its own in the store."
        ),
    ),
    "force": Param(
        False,
        type="boolean",
        title="Force: do it again",
        description_md="Every task works, even if the store has its result for these inputs and settings.",
    ),
    "promote": Param(
        None,
        type=["null", "string"],
        enum=[None, *PROMOTE_WORDS],
        values_display={
            "null": "as in the settings file",
            "fresh": "fresh: promoted unless it is worse",
            "if_better": "if_better: only if it is better",
            "never": "never: registered only",
            "force": "force: the alias moves, unless it is held",
            "override_hold": "override_hold: the alias moves, held or not",
        },
        title="Promote: what the gate does",
        description_md=(
            "Whether the new version becomes the one that is served. *if_better* is for a change of recipe. "
            "A backfill registers only, unless this says *force*."
        ),
    ),
}


def limits() -> dict[str, TaskResources]:
    """Each task's limits; with broken settings none, so that the DAG stays visible and its tasks say so."""
    try:
        return load_settings().resources
    except BadSettings:
        return {}


class ResultLink(BaseOperatorLink):
    """A button on the task's page, with an address that its result named."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def xcom_key(self) -> str:
        return f"_link_{self._name.lower().replace(' ', '_')}"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        return str(getattr(operator, "links", {}).get(self._name, ""))


class ResolveAsOf(BaseOperator):
    """The run's date, decided once."""

    ui_color = "#f4f0e8"

    def execute(self, context: Context) -> str:
        as_of = resolve_as_of(context["params"], RunFacts.from_dag_run(context["dag_run"]))
        self.log.info("this run is about %s, the last day of data", as_of)
        return as_of.isoformat()


class AwaitSources(BaseSensorOperator):
    """Waits, without holding a worker, until the source tables have the day."""

    template_fields = ("as_of",)

    def __init__(self, *, as_of: str = AS_OF, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.as_of = as_of

    def poke(self, context: Context) -> bool | PokeReturnValue:
        run_type = RunFacts.from_dag_run(context["dag_run"]).run_type
        if run_type == "backfill":
            raise AirflowSkipException("a backfill is about days that are over")
        day = date.fromisoformat(self.as_of)
        settings = load_settings()
        if launcher.source_ready(day, settings):
            return PokeReturnValue(True, {"as_of": self.as_of, "ready": True})
        if run_type != "scheduled":
            self.log.warning("the tables have no complete day %s; a run by hand goes on all the same", day)
            return PokeReturnValue(True, {"as_of": self.as_of, "ready": False})
        now = datetime.now(UTC)
        waited = now - (context["ti"].get_first_reschedule_date(context) or now)
        if waited >= timedelta(minutes=settings.alerts.late_minutes):
            callbacks.data_late(context, day, waited.total_seconds() / 60, "see the log of await_sources")
        if waited >= SOURCES_GIVE_UP_AFTER:
            self.log.warning("still no complete day %s; going on with what there is", day)
            return PokeReturnValue(True, {"as_of": self.as_of, "ready": False})
        return False

    def on_kill(self) -> None:
        launcher.end_children()


class ChainTask(BaseOperator):
    """One task of the chain, run as `python -m tasks.NAME` by the launcher."""

    template_fields = ("as_of",)

    def __init__(self, *, as_of: str = AS_OF, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.as_of = as_of
        self.links: dict[str, str] = {}
        self.operator_extra_links = tuple(map(ResultLink, (*LINKS.get(self.task_id, ()), "Runbook")))

    def execute(self, context: Context) -> dict[str, Any]:
        params, ti = context["params"], context["ti"]
        ui = ui_address(ti.log_url) or ""
        built_on = ti.xcom_pull(task_ids="extract") if self.task_id != "extract" else None
        settings = with_runbooks(load_settings(profile=params["profile"]), ui)
        try:
            result = launcher.run_task(
                self.task_id,
                date.fromisoformat(self.as_of),
                settings,
                profile=params["profile"],
                force=params["force"],
                promote=params["promote"],
                extract=(built_on or {}).get("fingerprint"),
                run_type=RunFacts.from_dag_run(context["dag_run"]).run_type,
                by=getattr(context["dag_run"], "triggering_user_name", None),
                emit=self.say,
            )
        except launcher.TaskFailed as failure:
            if failure.result:
                self.links = browsable(failure.result.links, settings, ui)
                self.say(replace(failure.result, links=self.links).table())
            self.links["Runbook"] = failure.runbook
            raise
        self.links = browsable(result.links, settings, ui)
        result = replace(result, links=self.links)
        self.say(result.table())
        if RELEASE in self.outlets:
            about = {"as_of": result.as_of, "verdict": result.verdict, "fingerprint": result.fingerprint}
            context["outlet_events"][RELEASE].extra = {**about, **result.counts, "manifest": result.manifest}
        return result.to_dict()

    def say(self, text: str) -> None:
        """To the task's log, in order with Airflow's own lines (print goes another way and may be late)."""
        for line in text.splitlines():
            level = logging.WARNING if line.lower().startswith(("warning:", "critical:")) else logging.INFO
            self.log.log(level, "%s", line)

    def on_kill(self) -> None:
        launcher.end_children()


class Receipt(BaseOperator):
    """Fails unless every task of the chain left a manifest of the run's date."""

    ui_color = "#f4f0e8"

    def execute(self, context: Context) -> dict[str, Any]:
        ti = context["ti"]
        results = {task: ti.xcom_pull(task_ids=task) for task in CHAIN}
        states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
        summary = receipt(results, str(ti.xcom_pull(task_ids="resolve_as_of")), states)
        for line in receipt_table(summary).splitlines():
            self.log.info("%s", line)
        return summary


RETRIES = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception=[launcher.FinalFailure, BadSettings, NoReceipt],
            action=RetryAction.FAIL,
            reason="the same again would fail the same way",
        ),
        RetryRule(
            exception=launcher.ServiceUnavailable,
            action=RetryAction.RETRY,
            retry_delay=timedelta(minutes=2),
            reason="a service did not answer; it may be restarting",
        ),
        RetryRule(
            exception=launcher.WorkBusy,
            action=RetryAction.RETRY,
            retry_delay=timedelta(minutes=5),
            reason="another process is doing this work; its result will be found",
        ),
    ]
)

with DAG(
    dag_id="audiobook_recommender",
    dag_display_name="Audiobook recommender",
    description="From source tables to a released 2T-HGNN version, one run a day of data",
    doc_md=DAG_DOC,
    # Midnight to midnight UTC, so that a backfill from D1 to D2 means exactly these days (measured: any other
    # hour loses the last day). Late data is await_sources' business, not the cron's.
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    # Airflow makes a run before the start date a success without tasks, so it lies before all data.
    start_date=datetime(2000, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,
    dagrun_timeout=timedelta(hours=24),
    params=PARAMS,
    tags=["2T-HGNN", "recommender"],
    on_failure_callback=callbacks.run_failed,
    on_success_callback=callbacks.run_succeeded,
    default_args={
        "owner": "recommendations",
        "retries": 2,
        "retry_delay": timedelta(seconds=20),
        "retry_exponential_backoff": 3,
        "max_retry_delay": timedelta(minutes=10),
        "retry_policy": RETRIES,
        "on_failure_callback": callbacks.task_failed,
    },
) as dag:
    resources = limits()

    def chain_task(name: str) -> ChainTask:
        minutes = resources[name].timeout_minutes if name in resources else 24 * 60
        queue = resources[name].queue if name in resources else None
        return ChainTask(
            task_id=name,
            doc_md=TASK_DOCS[name],
            execution_timeout=timedelta(minutes=minutes) + TIMEOUT_MARGIN,
            max_active_tis_per_dag=1 if name in ONE_AT_A_TIME else None,
            # A backfill skips await_sources, and a skip must not spread.
            trigger_rule="none_failed" if name == "extract" else "all_success",
            outlets=[RELEASE] if name == "promote" else None,
            **({"queue": queue} if queue else {}),
        )

    first = ResolveAsOf(
        task_id="resolve_as_of",
        doc_md=TASK_DOCS["resolve_as_of"],
        execution_timeout=timedelta(minutes=5),
    )
    sources = AwaitSources(
        task_id="await_sources",
        doc_md=TASK_DOCS["await_sources"],
        mode="reschedule",
        poke_interval=SOURCES_POKE,
        # Never reached: the sensor gives up by itself, softly, an hour earlier.
        timeout=SOURCES_GIVE_UP_AFTER + timedelta(hours=1),
        execution_timeout=timedelta(minutes=launcher.READINESS.timeout_minutes) + TIMEOUT_MARGIN,
    )
    step = {name: chain_task(name) for name in CHAIN}
    # Also when something failed or was skipped: the run may only be green with a receipt.
    last = Receipt(
        task_id="receipt",
        doc_md=TASK_DOCS["receipt"],
        trigger_rule="all_done",
        retries=0,
        execution_timeout=timedelta(minutes=5),
    )

    first >> sources >> step["extract"] >> step["validate"]
    step["validate"] >> [step["embed_text"], step["embed_music"], step["build_graph"]]
    [step["embed_text"], step["build_graph"]] >> step["train_hgnn"]
    [step["train_hgnn"], step["embed_music"]] >> step["train_two_tower"]
    # refresh needs the weights only, but a model that cannot be judged is not worth refreshing.
    step["train_two_tower"] >> step["evaluate"] >> step["refresh"] >> step["build_index"] >> step["promote"]
    step["promote"] >> last
