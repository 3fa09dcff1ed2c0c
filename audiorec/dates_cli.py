"""The command line of dates: `audiorec status --dates` and `audiorec backfill`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from audiorec.chain import CHAIN
from audiorec.errors import BadSettings
from audiorec.settings import Settings
from audiorec.terminal import Profile, SettingsFile, add_row, console, plain_errors, settings_in_use

Day = Annotated[datetime, typer.Argument(formats=["%Y-%m-%d"])]
MAX_DAYS = 1_000
WAIT_SECONDS = 5.0


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(backfill)


def days_between(first: date, last: date) -> list[date]:
    """The days first..last, both included.

    Raises:
        BadSettings: they are the wrong way round, or too many to be meant.
    """
    number = (last - first).days + 1
    if not 1 <= number <= MAX_DAYS:
        raise BadSettings(
            f"{first} to {last} is {number} day(s), expected 1 to {MAX_DAYS}; give the earlier day first"
        )
    return [first + timedelta(days=n) for n in range(number)]


def show_dates(settings: Settings, dates: Sequence[date]) -> None:
    """A table of dates: which tasks are done, stale and why, missing or failed."""
    from audiorec.oncall.sinks import recorded
    from audiorec.standing import standings

    table = Table(title="Results by date", title_justify="left")
    for column in ("as_of", "state", "tasks", "why"):
        table.add_column(column, overflow="fold")
    alerts = recorded(settings)
    for day in dates:
        groups: dict[tuple[str, str], list[str]] = {}
        for one in standings(settings, [day], alerts):
            groups.setdefault((one.state, one.why), []).append(one.task)
        shown = day.isoformat()
        for (state, why), tasks in groups.items():
            add_row(table, shown, state, "all" if len(tasks) == len(CHAIN) else ", ".join(tasks), why)
            shown = ""
        table.add_section()
    console.print(table)


def backfill(
    first: Day,
    last: Day,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be computed; start nothing.")
    ] = False,
    promote: Annotated[
        Literal["never", "force", "override_hold"],
        typer.Option(help="never: register only. force: the champion may move forward."),
    ] = "never",
    at_once: Annotated[int, typer.Option(min=1, max=16, help="Dates worked on at the same time.")] = 2,
    reverse: Annotated[bool, typer.Option("--reverse", help="The latest date first.")] = False,
    reprocess: Annotated[
        Literal["completed", "failed", "none"],
        typer.Option(
            help="Dates that have a run: again (what is done costs seconds), only failed ones, or none."
        ),
    ] = "completed",
    unpause: Annotated[bool, typer.Option("--unpause", help="Unpause the DAG if it is paused.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end, then show how the dates stand.")
    ] = False,
    profile: Profile = None,
    settings_file: SettingsFile = None,
) -> None:
    """Run the DAG for the days FIRST to LAST, both included, beside the schedule. The champion stays unless asked."""
    with plain_errors():
        from audiorec.stack import control, layout
        from audiorec.stack.client import AirflowClient

        settings = settings_in_use(settings_file, profile)
        days = days_between(first.date(), last.date())
        yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
        if days[-1] > yesterday:
            raise BadSettings(
                f"{days[-1]} is not over yet (UTC); the last day that can be built is {yesterday}"
            )
        state = control.status(settings)
        if dry_run and not state.running:
            _plan(settings, days, None)
            return
        if not state.running:
            raise layout.StackError("Airflow is down; start it with `audiorec up`, then try again")
        account = layout.login(settings)
        with AirflowClient(state.airflow, account.user, account.password) as client:
            if dry_run:
                made = client.backfill_days(layout.DAG_ID, days[0], days[-1], reprocess=reprocess)
                _plan(settings, days, set(made))
                return
            if client.dag(layout.DAG_ID)["is_paused"]:
                if not unpause:
                    raise layout.StackError(
                        f"the DAG {layout.DAG_ID} is paused, so the runs would wait for ever. Give --unpause; its schedule then "
                        "starts as well, with yesterday"
                    )
                client.unpause(layout.DAG_ID)
            params: dict[str, Any] = {"promote": promote, "profile": profile}
            number = client.create_backfill(
                layout.DAG_ID,
                days[0],
                days[-1],
                params={name: value for name, value in params.items() if value is not None},
                max_active_runs=at_once,
                reprocess=reprocess,
                backwards=reverse,
            )
            console.print(
                f"backfill {number}: {len(days)} date(s), {days[0]} to {days[-1]}; {state.airflow}/dags/{layout.DAG_ID}/backfills",
                highlight=False,
            )
            while wait and not client.backfill_finished(number):
                time.sleep(WAIT_SECONDS)
        if wait:
            show_dates(settings, days)


def _plan(settings: Settings, days: Sequence[date], made: set[date] | None) -> None:
    """What is there, and what would be computed."""
    from audiorec.standing import standings

    table = Table(title="A backfill would compute", title_justify="left")
    for column in ("as_of", "there", "computed", *(["run"] if made is not None else [])):
        table.add_column(column, overflow="fold")
    work = 0
    for day in days:
        found = list(standings(settings, [day]))
        todo = [one.task for one in found if one.state in ("stale", "missing")]
        run = [] if made is None else ["made" if day in made else "has one"]
        if made is not None and day not in made:
            todo = []
        work += len(todo)
        there = len(found) - sum(one.state in ("stale", "missing") for one in found)
        named = "all" if len(todo) == len(CHAIN) else ", ".join(todo)
        add_row(table, day.isoformat(), f"{there} of {len(found)}", named or "nothing", *run)
    console.print(table)
    console.print(
        f"{work} task(s) on {len(days)} date(s) would be computed. Stale tasks are made anew as others beside what is there; "
        "`audiorec status --dates` says why they are stale",
        highlight=False,
    )
