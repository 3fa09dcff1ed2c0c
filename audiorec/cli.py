"""The command line: `audiorec demo | run | task | status | generate | recommend | results | doctor | up | down`.

Thin: every command is a function of a module below. Nothing heavy is imported until a command needs it. Those of one
subject are in modules of their own, `*_cli.py`.
"""

from __future__ import annotations

import os
import shutil
import sys
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from audiorec import cluster_cli, dates_cli, oncall_cli, privacy_cli, release_cli, serving_cli
from audiorec.chain import CHAIN
from audiorec.errors import ExitCode
from audiorec.settings import SETTINGS_VARIABLE, Settings
from audiorec.terminal import (
    AsOf,
    Profile,
    SettingsFile,
    console,
    errors,
    plain_errors,
    settings_as_started,
    settings_in_use,
    settings_of,
)

app = typer.Typer(
    help="Audiobook recommendations with 2T-HGNN, as an Airflow workflow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
DAG_ID = "audiobook_recommender"
DEMO_MODEL = "audiobook_recommender_demo"
release_cli.register(app)
dates_cli.register(app)
oncall_cli.register(app)
privacy_cli.register(app)
cluster_cli.register(app)


def _yesterday() -> date:
    return (datetime.now(UTC) - timedelta(days=1)).date()


@app.command()
def demo(profile: Profile = "standard", settings_file: SettingsFile = None) -> None:
    """Sample tables, Airflow and MLflow, one real run of the DAG, recommendations. The services stay up."""
    with plain_errors():
        from audiorec.stack.control import MODEL_VARIABLE
        from audiorec.stack.control import status as stack_status
        from audiorec.stack.preflight import preflight

        os.environ.setdefault(MODEL_VARIABLE, DEMO_MODEL)
        settings = settings_of(settings_file)
        if not stack_status(settings).running:
            preflight(settings)
        as_of = sample_tables(Path(settings.source.uri))
        trigger_and_show(settings, settings_file, as_of, {"profile": profile}, step=2)


def sample_tables(folder: Path) -> date:
    """Write the sample source tables, unless they are there; returns their last day."""
    from audiorec.simulator import preset, write_source_tables

    as_of = _yesterday()
    console.print(f"1. Sample source tables up to {as_of} (made up; not Spotify's data)")
    summary = write_source_tables(preset("sample", last_day=as_of), folder)
    rows = ", ".join(f"{number:,} {table}" for table, number in summary.rows.items())
    console.print(f"   {'there already' if summary.reused else 'written'} in {folder}: {rows}")
    return as_of


@app.command()
def run(
    as_of: AsOf,
    source: Annotated[
        str | None, typer.Option(help="Source tables: folder of parquet, .duckdb file or .sql file.")
    ] = None,
    profile: Profile = None,
    force: Annotated[bool, typer.Option(help="Do every task again.")] = False,
    promote: Annotated[str | None, typer.Option(help="fresh, if_better, never or force.")] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Run the DAG for one date on your own tables, through Airflow; starts the services if they are down.

    With neither --source nor --settings: with the services as they were last started.
    """
    with plain_errors():
        if source is None:
            settings, settings_file = settings_as_started(settings_file, profile)
        else:
            settings = settings_of(settings_file, profile, source={"uri": source})
        params = {"profile": profile, "force": force, "promote": promote}
        trigger_and_show(
            settings, settings_file, as_of.date(), {k: v for k, v in params.items() if v is not None}, step=1
        )


def trigger_and_show(
    settings: Settings, settings_file: Path | None, as_of: date, params: dict[str, Any], step: int
) -> None:
    """Start the services, trigger the DAG for a date, watch it, show what it gave; Exit 1 unless all of it is true."""
    from audiorec.demo import show_metrics, show_recommendations
    from audiorec.recommend import Recommender
    from audiorec.stack import control, layout
    from audiorec.stack.client import AirflowClient
    from audiorec.stack.watch import watch

    console.print(f"{step}. Airflow, MLflow and the recommendation service on this machine")
    state = control.start(settings, settings_file=settings_file, say=lambda text: console.print(f"   {text}"))
    login = layout.login(settings)
    console.print(
        f"   up{'' if state.seconds is None else f' after {state.seconds:.0f} s'}: {state.airflow}, {state.mlflow} and {state.serving}"
    )
    with AirflowClient(state.airflow, login.user, login.password) as client:
        client.wait_for_dag(DAG_ID, 120)
        started = client.start_run(DAG_ID, as_of, params)
        console.print(f"{step + 1}. DAG run {started.run_id} for {as_of}")
        ended = watch(
            client,
            DAG_ID,
            started.run_id,
            progress_folder=Path(settings.store.scratch) / "progress" / as_of.isoformat(),
            console=console,
        )
        verdict = client.xcom(DAG_ID, started.run_id, "promote") or {}
    if ended.state != "success":
        errors.print(
            f"The run ended as {ended.state}. Open {state.airflow}/dags/{DAG_ID}/runs/{started.run_id}, the red task's log says why; "
            f"then Clear it. Log in as {login.user}; the password is in {layout.Layout.of(settings).passwords}."
        )
        raise typer.Exit(1)
    console.print(f"   promote: {verdict.get('verdict')}")
    recommender = Recommender.champion(settings)
    console.print(
        f"{step + 2}. Recommendations of version {recommender.version}, data up to {recommender.as_of}"
    )
    if settings.source.uri.endswith("sample"):
        show_recommendations(console, recommender)
    else:
        _show_whoever(recommender)
    show_metrics(console, settings, min(as_of, recommender.as_of))
    console.print(
        f"Airflow: {state.airflow}  (user {login.user}, password {login.password})", highlight=False
    )
    console.print(f"MLflow:  {state.mlflow}  (no login; bound to this machine)", highlight=False)
    console.print(
        f"Service: {state.serving}  (API key in {layout.Layout.of(settings).serving_keys})", highlight=False
    )
    console.print("All stay up; `make down` ends them.")


def _show_whoever(recommender: Any) -> None:
    """On somebody's own tables not every kind of user need exist."""
    from audiorec.demo import TITLES, recommendation_table

    for kind, user_id in recommender.example_users().items():
        if user_id is None:
            console.print(f"   (no {kind.removeprefix('a ')} in these tables)")
        else:
            found = recommender.recommend(user_id, TITLES)
            console.print(
                recommendation_table(f"For {kind}: {user_id} ({recommender.about(user_id)})", found)
            )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def task(
    context: typer.Context, name: Annotated[str, typer.Argument(help=f"One of {', '.join(CHAIN)}.")]
) -> None:
    """Run one task alone, as `python -m tasks.NAME` does, e.g. `audiorec task extract --as-of 2026-11-23`."""
    if name not in CHAIN:
        errors.print(f"unknown task {name!r}; expected one of {', '.join(CHAIN)}")
        raise typer.Exit(int(ExitCode.BAD_SETTINGS))
    from audiorec.runner import main

    main(name, context.args)


@app.command()
def status(
    first: Annotated[
        datetime | None, typer.Argument(formats=["%Y-%m-%d"], help="With --dates: the first day.")
    ] = None,
    last: Annotated[
        datetime | None, typer.Argument(formats=["%Y-%m-%d"], help="... and the last (default: the first).")
    ] = None,
    as_of: Annotated[datetime | None, typer.Option("--as-of", formats=["%Y-%m-%d"])] = None,
    dates: Annotated[
        bool, typer.Option("--dates", help="Say why tasks are stale, too, and what failed.")
    ] = False,
    settings_file: SettingsFile = None,
) -> None:
    """Services, the champion, and per date and task: done, stale (with other inputs, settings or code) or missing."""
    with plain_errors():
        from audiorec.champion import read_pointer
        from audiorec.runner import Resolver
        from audiorec.stack import control
        from audiorec.store import Store

        settings = settings_in_use(settings_file)
        state = control.status(settings)
        parts = (
            ", ".join(f"{name} {word}" for name, word in state.services.items())
            or "down (`audiorec up` starts them)"
        )
        console.print(f"services: {parts}", highlight=False)
        store = Store(settings.store.uri, settings.store.scratch)
        pointed = read_pointer(store, settings.release.model_name)
        if pointed:
            data_date = date.fromisoformat(pointed[1]["as_of"])
            age = (datetime.now(UTC).date() - data_date).days
            console.print(
                f"champion of {settings.release.model_name}: version {pointed[0]}, data up to {data_date} ({age} day(s) old)",
                highlight=False,
            )
        else:
            console.print(f"champion of {settings.release.model_name}: none yet", highlight=False)
        newest = [date.fromisoformat(key) for key in store.keys("extract")][-14:]
        shown = [as_of.date()] if as_of else newest
        if first is not None:
            shown = dates_cli.days_between(first.date(), (last or first).date())
        if dates:
            dates_cli.show_dates(settings, shown)
            return
        table = Table(title="Results by date", title_justify="left")
        states = ("done", "stale", "missing")
        # Tasks in cells, not as columns: eleven of those leave three letters each on a usual terminal.
        for column in ("as_of", *states):
            table.add_column(column, min_width=10)
        for one in shown:
            resolver = Resolver(settings, one)
            found: dict[str, list[str]] = {state: [] for state in states}
            for name in CHAIN:
                if resolver.manifest(name):
                    found["done"].append(name)
                else:
                    found["stale" if store.versions(name, one.isoformat()) else "missing"].append(name)
            cells = ["all" if len(names) == len(CHAIN) else ", ".join(names) for names in found.values()]
            table.add_row(one.isoformat(), *cells)
        console.print(table)


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="Where to write the tables.")],
    preset_name: Annotated[
        str, typer.Option("--preset", help="tiny, sample or paper (docs/simulator.md).")
    ] = "sample",
    seed: Annotated[int, typer.Option(help="Another seed gives other people with other tastes.")] = 1,
    users: Annotated[
        int | None, typer.Option(help="Number of users, n_users (default: the preset's).")
    ] = None,
    audiobooks: Annotated[
        int | None,
        typer.Option(help="Number of audiobooks, n_audiobooks; podcasts keep pace (default: the preset's)."),
    ] = None,
    last_day: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="Last day of events (default: yesterday; of paper: the preset's)."
        ),
    ] = None,
) -> None:
    """Write seeded sample source tables."""
    with plain_errors():
        from audiorec.simulator import sized, write_source_tables
        from audiorec.simulator.truth import truth_of

        fixed: dict[str, Any] = {"seed": seed}
        if last_day is not None:
            fixed["last_day"] = last_day.date()
        elif preset_name != "paper":  # Results of experiments are to be found again on any day.
            fixed["last_day"] = _yesterday()
        config = sized(preset_name, users, audiobooks, **fixed)
        summary = write_source_tables(config, folder)
        table = Table(
            title=f"{'There already' if summary.reused else 'Written'}: {folder}", title_justify="left"
        )
        table.add_column("table")
        table.add_column("rows", justify="right")
        table.add_column("of them dirt", justify="right")
        for name, number in summary.rows.items():
            table.add_row(name, f"{number:,}", f"{number - summary.clean_rows[name]:,}")
        console.print(table)
        if config.leading:
            console.print(f"The truth, for the oracle alone: {truth_of(folder)}")


@app.command()
def results(
    as_of: AsOf,
    out: Annotated[Path, typer.Option(help="Folder for run.md, its CSVs and run.png.")],
    source: Annotated[str | None, typer.Option(help="Source tables, as in `run`.")] = None,
    profile: Profile = None,
    settings_file: SettingsFile = None,
) -> None:
    """Write the figures of a date's `evaluate` as a page with its command, commit, seeds and machine."""
    with plain_errors():
        from audiorec.experiments.publish import publish

        overrides = {} if source is None else {"source": {"uri": source}}
        settings = settings_of(settings_file, profile, **overrides)
        page = publish(settings, as_of.date(), out, settings_file)
        console.print(f"written: {page}", highlight=False)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="table1, table2, table3, table4, scarcity or analysis.")],
    source: Annotated[str, typer.Option(help="Source tables, as in `run`.")],
    as_of: AsOf,
    holdout_days: Annotated[int | None, typer.Option(help="Days kept for judging.")] = None,
    window_days: Annotated[
        str | None, typer.Option(help="History that a cut sees: a number, or all.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds (default: the table's).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page (default: docs/results/SOURCE).")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Tasks at a time (default: one a core, as far as memory goes)."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compute nothing: say whether the page is current.")
    ] = False,
    profile: Profile = None,
    config: Annotated[
        str | None,
        typer.Option(help="default, or paper for the paper's own configuration (the setting `recipe`)."),
    ] = None,
    settings_file: SettingsFile = None,
) -> None:
    """A table of the paper on your own tables: every system and rival, judged alike. Finished cells are not run again."""
    with plain_errors():
        from audiorec.experiments.command import check_page, run_experiment
        from audiorec.experiments.command import describe as described

        wanted = described(
            name, source, as_of.date(), holdout_days, window_days, seeds, out, profile, settings_file, config
        )
        if check:
            stale = check_page(wanted)
            for line in stale:
                errors.print(line, markup=False, highlight=False, soft_wrap=True)
            console.print(f"{wanted.page}: {'stale' if stale else 'current'}", highlight=False)
            raise typer.Exit(1 if stale else 0)
        page = run_experiment(wanted, partial(console.print, highlight=False, soft_wrap=True), jobs)
        console.print(f"written: {page}", highlight=False)


@app.command()
def up(settings_file: SettingsFile = None) -> None:
    """Start Airflow, MLflow and the recommendation service on this machine, as they were last started.

    If they run, and settings in their file have changed since: restart them, unless a run is active.
    """
    with plain_errors():
        from audiorec.stack import control, layout

        settings, settings_file = settings_as_started(settings_file)
        state = control.start(settings, settings_file=settings_file)
        login = layout.login(settings)
        console.print(
            f"Airflow: {state.airflow}  (user {login.user}, password {login.password})", highlight=False
        )
        console.print(f"MLflow:  {state.mlflow}", highlight=False)
        console.print(
            f"Service: {state.serving}  (API key in {layout.Layout.of(settings).serving_keys})",
            highlight=False,
        )


@app.command()
def down(settings_file: SettingsFile = None) -> None:
    """End the services that were started here."""
    with plain_errors():
        from audiorec.stack import control
        from audiorec.stack.servers import Servers

        settings = settings_of(settings_file)
        control.stop(settings)
        if Servers.made_for(settings) and Servers.of(settings).stop():
            console.print("the servers of the cluster are stopped, too")


@app.command()
def doctor(settings_file: SettingsFile = None) -> None:
    """Say what is wrong with a set-up; exit 1 if anything is."""
    problems = 0

    def check(what: str, function: Any) -> Any:
        nonlocal problems
        try:
            found = function()
        except Exception as error:  # every kind of failure is a finding here
            problems += 1
            console.print(f"[red]wrong[/red]  {what}: ", end="")
            console.print(str(error), markup=False, highlight=False)
            return None
        console.print(f"[green]fine[/green]   {what}{f': {found}' if found else ''}", highlight=False)
        return found

    held: dict[str, Settings] = {}

    def read() -> str:
        held["settings"] = settings_in_use(settings_file)
        return str(
            settings_file
            or os.environ.get(SETTINGS_VARIABLE)
            or "defaults, or those of the services that run here"
        )

    check("settings", read)
    check("Python", lambda: sys.version.split()[0])
    if "settings" in held:
        settings = held["settings"]
        from audiorec.source import open_source
        from audiorec.stack import control
        from audiorec.stack.preflight import preflight
        from audiorec.store import Store

        check("store", lambda: Store(settings.store.uri, settings.store.scratch).root)
        check("source tables", lambda: open_source(settings).uri)
        state = control.status(settings)
        if state.running:
            check("services", lambda: _all_healthy(state))
        else:
            check("room for the services (they are down)", lambda: preflight(settings))
        free = shutil.disk_usage(Path.cwd()).free / 2**30
        check("disk", lambda: f"{free:.0f} GiB free")
    if problems:
        raise typer.Exit(1)


def _all_healthy(state: Any) -> str:
    if not state.healthy:
        raise RuntimeError(
            ", ".join(f"{name}: {word}" for name, word in state.services.items()) or str(state.error)
        )
    return f"{state.airflow}, {state.mlflow}"


serving_cli.register(app)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
