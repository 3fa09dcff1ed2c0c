"""The command line of release control: `audiorec rollback | reject | hold | history | gc`."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from audiorec.errors import BadSettings
from audiorec.settings import HOLD_DAYS
from audiorec.terminal import SettingsFile, add_row, console, plain_errors, settings_in_use

Reason = Annotated[str, typer.Option("--reason", help="Why; it stays in the history.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (rollback, reject, hold, history, gc):
        app.command()(command)


def rollback(
    to: Annotated[
        str | None, typer.Option(help="Number of the version to go back to (default: the last good one).")
    ] = None,
    reason: Reason = "",
    hold_days: Annotated[
        float, typer.Option(min=0, help="Days in which nothing is promoted; 0: no hold.")
    ] = HOLD_DAYS,
    expect: Annotated[
        str | None, typer.Option(help="Do it only if this version is the champion now.")
    ] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Make an earlier version the champion at once; the present one is rejected for good."""
    with plain_errors():
        done = _control(settings_file).rollback(
            to=to, expected=expect, why=reason, who="", hold_days=hold_days
        )
        for note in done.notes:
            console.print(f"warning: {note}", highlight=False, markup=False)
        console.print(done.line(), highlight=False, markup=False, soft_wrap=True)
        console.print("`audiorec history` shows it; `audiorec hold --clear` ends the hold.")


def reject(
    version: Annotated[str, typer.Argument(help="Number of the version.")],
    reason: Reason = "",
    settings_file: SettingsFile = None,
) -> None:
    """Mark a version as never eligible again. Of the champion itself: use rollback."""
    with plain_errors():
        rejected = _control(settings_file).reject(version, why=reason, who="")
        console.print(f"version {version} ({rejected.as_of}) is rejected for good", highlight=False)


def hold(
    reason: Reason = "",
    days: Annotated[float | None, typer.Option(min=0, help="How long.")] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Up to and with this day, UTC.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take the hold back.")] = False,
    settings_file: SettingsFile = None,
) -> None:
    """Keep promote from moving the champion, for some days or until --clear; without options, say what is held."""
    with plain_errors():
        control = _control(settings_file)
        if clear:
            held = control.release_hold(why=reason, who="")
            console.print(
                f"no longer held ({held.line()})" if held else "nothing was held",
                highlight=False,
                markup=False,
            )
            return
        if days is not None and until is not None:
            raise BadSettings("--days and --until both say when the hold ends; give one of them")
        if days is not None or until is not None or reason:
            end = None if days is None else datetime.now(UTC) + timedelta(days=days)
            if until is not None:
                end = datetime.combine(until.date() + timedelta(days=1), time(0), UTC)
            control.hold(why=reason, who="", until=end)
        found = control.registry.hold()
        console.print(f"held: {found.line()}" if found else "nothing is held", highlight=False, markup=False)


def history(
    limit: Annotated[int, typer.Option(min=1, help="How many entries, the newest first.")] = 20,
    settings_file: SettingsFile = None,
) -> None:
    """Every move of an alias, every rejection and hold: from, to, who, when and why. Needs no service."""
    with plain_errors():
        from itertools import islice

        from audiorec.history import History
        from audiorec.store import Store

        settings = settings_in_use(settings_file)
        record = History(Store(settings.store.uri, settings.store.scratch), settings.release.model_name)
        table = Table(
            title=f"Releases of {settings.release.model_name}", title_justify="left", show_lines=True
        )
        for column in ("when (UTC)", "what", "from", "to", "who", "why"):
            table.add_column(column, overflow="fold")
        for found in islice(record.newest_first(), limit):
            entry = found.entry
            what = f"{entry.action.replace('_', ' ')}{f' ({entry.alias})' if entry.alias else ''}"
            if found.outcome != "done":
                what += f"\n{found.outcome or 'open: the next command settles it'}"
            why = [
                entry.why,
                entry.verdict,
                f"held until {entry.until or 'taken back'}" * (entry.until is not None),
            ]
            cells = [entry.at[:16].replace("T", " "), what, str(entry.before or "–"), str(entry.after or "–")]
            add_row(table, *cells, entry.who, "\n".join(filter(None, why)))
        console.print(table if table.row_count else "nothing was ever promoted", markup=False)


def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Really remove; without it only say what.")] = False,
    each: Annotated[bool, typer.Option("--each", help="A line for each folder and file.")] = False,
    settings_file: SettingsFile = None,
) -> None:
    """Say what the store no longer needs, and remove it with --apply (store.retention_days)."""
    with plain_errors():
        from audiorec.retention import collect

        collected = collect(settings_in_use(settings_file), apply=apply)
        if each:
            for item in collected.items:
                console.print(
                    f"{item.bytes:>14,}  {item.path}  ({item.reason})",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
        table = Table(
            title="Removed" if apply else "Would be removed (--apply does it)", title_justify="left"
        )
        for column in ("what", "why", "number", "MB"):
            table.add_column(column, justify="right" if column in ("number", "MB") else "left")
        for (what, why), (number, size) in sorted(collected.by_kind().items()):
            add_row(table, what, why, f"{number:,}", f"{size / 1e6:,.1f}")
        console.print(table)
        console.print(collected.line(), highlight=False, markup=False)


def _control(settings_file: Path | None) -> Any:
    from audiorec.release import ReleaseControl

    return ReleaseControl(settings_in_use(settings_file))
