"""Rollback by a form: an earlier version becomes the champion at once, the present one is rejected.

Only wiring is here. What happens is in `audiorec/release.py`; `audiorec rollback` in a shell is the same.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context, ExceptionRetryPolicy, Param, RetryAction, RetryRule

from audiorec import launcher
from audiorec.assets import RELEASE
from audiorec.errors import BadSettings
from audiorec.oncall import callbacks
from audiorec.oncall.pages import ui_address, with_runbooks
from audiorec.settings import HOLD_DAYS, load_settings

DAG_DOC = """
### Go back to an earlier release

For when what is served now is bad. **Trigger**, say why, and leave the rest as it is.

#### What happens, within a minute
1. `promote` is held for the days that you give: daily runs go on, and register only.
2. The champion is marked as rejected. It never becomes champion again, by no run and no policy.
3. The alias `champion` moves to the version that you name, by default the last good one: promoted, not rejected, of the
   newest data date before, every file as it was written. Services that follow the alias change over at once.

Who triggered it, when and why is kept: `audiorec history`, and *Browse > Audit Log* here.

#### What is normal
- Cleared or tried again, the same run does nothing more: it says *was rolled back already*.
- The next daily run ends green with the verdict *registered: the alias is held*.

#### Afterwards
`audiorec hold --clear` ends the hold early. A mended release of a later date is promoted by the next run after the hold,
or at once by a run with `promote = override_hold`.
"""

TASK_DOC = """
- **What it does.** Holds the alias, rejects the champion, moves the alias back. The log says from where to where.
- **What is normal.** Some seconds.
- **If it is red.** `BAD-SETTINGS` names what stands against it (no earlier version, say), and nothing was changed.
  `UNAVAILABLE`: MLflow does not answer; it is tried again, and what was begun is finished.
"""

PARAMS = {
    "reason": Param(
        type="string",
        minLength=3,
        maxLength=2000,
        title="Reason",
        description_md="What is wrong with the version that serves now. It stays in the history of releases.",
    ),
    "version": Param(
        None,
        type=["null", "string"],
        pattern=r"^[1-9]\d{0,8}$",
        title="Version to go back to",
        description_md="Its number in the registry. **Empty: the last good one**, which is nearly always right.",
    ),
    "hold_days": Param(
        HOLD_DAYS,
        type="number",
        minimum=0,
        maximum=365,
        title="Hold: days without a promotion",
        description_md="So long the daily runs register only. 0: the next run may already bring a new champion.",
    ),
}


class Rollback(BaseOperator):
    """`python -m audiorec.release rollback`, run by the launcher, in the name of whoever triggered the run."""

    ui_color = "#f4e0dc"

    def execute(self, context: Context) -> dict[str, Any]:
        params, dag_run = context["params"], context["dag_run"]
        settings = with_runbooks(load_settings(), ui_address(context["ti"].log_url) or "")
        user = getattr(dag_run, "triggering_user_name", None)
        result = launcher.run_rollback(
            settings,
            to=params["version"],
            reason=params["reason"],
            hold_days=params["hold_days"],
            who=f"{user} (Airflow)" if user else "Airflow",
            request=f"{dag_run.dag_id}/{dag_run.run_id}",
            emit=self.say,
        )
        self.say(result.table())
        context["outlet_events"][RELEASE].extra = {"as_of": result.as_of, "verdict": result.verdict}
        return result.to_dict()

    def say(self, text: str) -> None:
        for line in text.splitlines():
            level = logging.WARNING if line.lower().startswith("warning:") else logging.INFO
            self.log.log(level, "%s", line)

    def on_kill(self) -> None:
        launcher.end_children()


with DAG(
    dag_id="audiobook_rollback",
    dag_display_name="Audiobook rollback",
    description="Back to an earlier release at once; the present one is rejected for good",
    doc_md=DAG_DOC,
    schedule=None,
    start_date=datetime(2000, 1, 1, tzinfo=UTC),
    # A run of a paused DAG stays queued without a word, and this one is for an emergency.
    is_paused_upon_creation=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    params=PARAMS,
    tags=["2T-HGNN", "recommender", "on call"],
    on_failure_callback=callbacks.run_failed,
    default_args={"owner": "recommendations", "on_failure_callback": callbacks.task_failed},
) as dag:
    Rollback(
        task_id="rollback",
        doc_md=TASK_DOC,
        outlets=[RELEASE],
        retries=3,
        retry_delay=timedelta(seconds=10),
        retry_policy=ExceptionRetryPolicy(
            rules=[
                RetryRule(
                    exception=[launcher.FinalFailure, BadSettings],
                    action=RetryAction.FAIL,
                    reason="the same again would fail the same way",
                )
            ]
        ),
        execution_timeout=timedelta(minutes=launcher.ROLLBACK.timeout_minutes + 5),
    )
