"""Suites of the event tables: music_events, podcast_events, audiobook_events, and all of them together.

The day `as_of` is compared with the `validation.drift_days` days before it, all inside the run's own window:
never with other runs, so the order of backfills changes no verdict. Rows of users over the daily cap are
quarantined by extract and left out of volume and faults, so one bot warns and does not stop the run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from expectations.check import Check, RowCheck, Severity, Suite
from expectations.reasons import ITEM_COLUMNS, column_of, is_fault, reason_of
from sql import read_sql

if TYPE_CHECKING:
    import duckdb

ONE_DAY = timedelta(days=1)
EVENTS = {
    "music": ("stream",),
    "podcast": ("stream", "follow", "preview"),
    "audiobook": ("stream", "follow", "preview", "intent_to_pay"),
}

FEW_ROWS = 20
"""Under 20 expected rows an empty day is chance (a Poisson mean of 20 gives zero once in 5e8 days)."""
ENOUGH_FOR_SHARES = 200
"""Rows before a share or a mean of one day is compared: its standard error is then at most 3.5 points."""
ENOUGH_DAYS = 7
"""A usual day is known from a week on; with fewer days nothing is compared."""
BOT_FLOOR = 500
"""One listener may be half of a tiny day: shares of the largest user are taken of at least this many rows."""

NOTICED_SHARE = 0.01
"""Faults in 1 row of 100 are no accident any more; at-least-once delivery repeats far fewer."""
BOT_SHARE = 0.2
"""A fifth of all rows from one account."""
MIX_DISTANCE = 0.2
"""A fifth of the events changed kind (total variation)."""
COMMON_EVENT = 0.05
"""An event that was 5% of the rows does not vanish by chance where 20 of it are due."""
SECONDS_RATIO = 5.0
"""Mean play length may vary threefold with the catalogue; minutes for seconds is 60."""
SHARE_JUMP = 0.2
"""Points by which the share of short plays may rise above the usual day's."""
NULL_JUMP = 0.02
"""Points by which the share of rows with a missing field may rise above the usual day's."""
SHORT_DAY = 0.5
"""Half of the emptiest day of the last weeks: the day may still be arriving."""
GAP_HISTORY_DAYS = 14
"""Two weeks without a gap make a gap new."""


@dataclass
class Counts:
    """Rows of one table on one day, as `sql/quality_event_days.sql` counts them."""

    counted: int = 0
    ordinary: int = 0
    faults: int = 0
    too_short: int = 0
    nulls: int = 0
    source_rows: int = 0
    quarantined: int = 0
    capped_users: int = 0
    users: int = 0
    largest_user_rows: int = 0
    unknown_items: int = 0
    unknown_users: int = 0


@dataclass
class Rejects:
    """Rows of one table and reason, as `sql/quality_rejects.sql` counts them."""

    table: str
    reason: str
    rows: int
    rows_of_day: int
    capped_user_rows: int
    users: int
    titles: int


@dataclass
class Profile:
    """All that the suites of the event tables need to know; small, whatever the size of the tables."""

    as_of: date
    first_day: date
    compared: dict[str, dict[date, Counts]] = field(default_factory=dict)
    window: dict[str, dict[date, int]] = field(default_factory=dict)
    mix: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    seconds: dict[str, dict[date, tuple[int, float]]] = field(default_factory=dict)
    rejects: list[Rejects] = field(default_factory=list)
    history: dict[str, int] = field(default_factory=dict)
    users: int = 0

    def days(self, drift_days: int) -> list[date]:
        """The days before `as_of` that it is compared with, none before the window's first."""
        first = max(self.first_day, self.as_of - drift_days * ONE_DAY)
        return [first + number * ONE_DAY for number in range((self.as_of - first).days)]


def profile(connection: duckdb.DuckDBPyConnection, as_of: date, first_day: date, drift_days: int) -> Profile:
    """Count what the suites compare, from the views that `tasks/validate.py` lays over extract's files."""
    found = Profile(as_of, first_day)
    for item_type, names in EVENTS.items():
        found.compared[item_type] = {}
        found.window[item_type] = {}
        found.mix[item_type] = dict.fromkeys(names, (0, 0))
        found.seconds[item_type] = {}
    for day, item_type, *numbers in connection.execute(read_sql("quality_event_days")).fetchall():
        found.compared[item_type][day] = Counts(*numbers)
    first_compared = max(first_day, as_of - drift_days * ONE_DAY)
    for day, item_type, event, rows, seconds in connection.execute(
        "SELECT day, item_type, event, rows, seconds FROM days ORDER BY day, item_type, event"
    ).fetchall():
        window = found.window[item_type]
        window[day] = window.get(day, 0) + rows
        if day >= first_compared:
            today, before = found.mix[item_type][event]
            found.mix[item_type][event] = (today + rows, before) if day == as_of else (today, before + rows)
            if event == "stream":
                found.seconds[item_type][day] = (rows, seconds)
    rejects = connection.execute(read_sql("quality_rejects"), {"as_of": as_of}).fetchall()
    found.rejects = [Rejects(*row) for row in rejects]
    cursor = connection.execute(read_sql("quality_history"), {"as_of": as_of})
    figures = [column[0] for column in cursor.description or ()]
    found.history = dict(zip(figures, cursor.fetchall()[0], strict=True))
    found.users = int(connection.execute("SELECT COUNT(*) FROM users").fetchall()[0][0])
    return found


def suites(
    found: Profile,
    validation: Mapping[str, Any],
    extract: Mapping[str, Any],
    samples: Mapping[str, Any],
) -> list[Suite]:
    """One suite a table, and `interactions` for what only shows across them.

    Args:
        found: the counts.
        validation: the settings group `validation` as plain JSON.
        extract: the settings group `extract` that the rows were judged by.
        samples: a bounded frame of counted events of the last day, by item type.
    """
    tables = [_table(found, item_type, validation, extract, samples.get(item_type)) for item_type in EVENTS]
    return [*tables, _together(found, validation)]


def _usual(values: Sequence[int]) -> float:
    """The median day among those with any row."""
    present = [value for value in values if value]
    return float(statistics.median(present)) if present else 0.0


def _share(part: int, whole: int, least: int = FEW_ROWS) -> float:
    return part / max(whole, least)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _table(
    found: Profile, item_type: str, validation: Mapping[str, Any], extract: Mapping[str, Any], sample: Any
) -> Suite:
    table, item = f"{item_type}_events", ITEM_COLUMNS[item_type]
    window = found.window[item_type]
    rejects = [r for r in found.rejects if r.table == table]
    counted = sum(window.values())
    metrics: dict[str, float | int | None] = {"counted_rows_in_window": counted}
    checks = [
        Check(
            "DQ-EMPTY",
            "counted_rows_in_window",
            "occurred_at",
            "critical" if item_type == "audiobook" else "warning",
            f"no row that counts between {found.first_day} and {found.as_of}"
            + (
                f", while {sum(r.rows for r in rejects):,} were set aside ({_reasons(rejects)})"
                if rejects
                else ""
            ),
            "at least one",
            "load the table; music and podcasts may be missing, but there is nothing to learn without "
            "audiobook events",
            "the targets are audiobook streams",
            minimum=1,
        )
    ]
    today = found.compared[item_type].get(found.as_of, Counts())
    if not counted and not today.source_rows:
        return Suite(table, metrics, checks)
    days = found.days(validation["drift_days"])
    before = [found.compared[item_type].get(day, Counts()) for day in days]
    usual = _usual([c.ordinary for c in before])
    _freshness(found, table, window, usual, today, rejects, validation, metrics, checks)
    _volume(found, table, before, usual, today, validation, metrics, checks)
    _gaps(found, table, item_type, usual, validation, metrics, checks)
    _faults(found, table, counted, today, before, rejects, validation, metrics, checks)
    _unknown(found, table, item, counted, today, rejects, validation, metrics, checks)
    _bots(found, table, today, extract, metrics, checks)
    _event_mix(found, item_type, metrics, checks)
    _play_length(found, item_type, metrics, checks)
    return Suite(table, metrics, checks, sample, _row_checks(item_type, item, extract))


def _freshness(
    found: Profile,
    table: str,
    window: Mapping[date, int],
    usual: float,
    today: Counts,
    rejects: Sequence[Rejects],
    validation: Mapping[str, Any],
    metrics: dict[str, float | int | None],
    checks: list[Check],
) -> None:
    with_rows = [day for day, rows in window.items() if rows]
    last = max(with_rows) if with_rows else None
    metrics["days_since_last_event"] = (found.as_of - last).days if last else None
    allowed = validation["freshness_days"]
    if not today.source_rows and not any(by_day.get(found.as_of) for by_day in found.window.values()):
        return  # a day that no table has is told once, by the suite of all tables
    aside = ""
    if today.source_rows:
        of_day = [Rejects(r.table, r.reason, r.rows_of_day, 0, 0, 0, 0) for r in rejects if r.rows_of_day]
        aside = f"; {today.source_rows:,} source row(s) of that day were set aside ({_reasons(of_day)})"
    checks.append(
        Check(
            "DQ-EMPTY-DAY",
            "days_since_last_event",
            "occurred_at",
            "critical" if usual >= FEW_ROWS else "warning",
            f"0 rows that count on {found.as_of}; the last before is of {last}, a usual day has "
            f"{usual:,.0f}{aside}",
            f"rows no older than {allowed} day(s) before as_of (validation.freshness_days)",
            "load the day and run extract again; if the source is closed on such days, raise "
            "validation.freshness_days",
            f"a model of a day that has not arrived is yesterday's; a table of under {FEW_ROWS} rows a "
            "day may be empty by chance",
            maximum=allowed,
        )
    )


def _volume(
    found: Profile,
    table: str,
    before: Sequence[Counts],
    usual: float,
    today: Counts,
    validation: Mapping[str, Any],
    metrics: dict[str, float | int | None],
    checks: list[Check],
) -> None:
    present = [c.ordinary for c in before if c.ordinary]
    if len(present) < ENOUGH_DAYS or not today.ordinary:
        return
    metrics["rows_of_day"] = today.ordinary
    metrics["volume_ratio"] = today.ordinary / max(usual, FEW_ROWS)
    shown = (
        f"{today.ordinary:,} rows on {found.as_of}, {today.ordinary / max(usual, 1):.2f} times the "
        f"usual {usual:,.0f}"
    )
    limits: tuple[tuple[Severity, float, str, str], ...] = (
        (
            "critical",
            validation["absurd_volume_ratio"],
            "absurd_volume_ratio",
            "such a day is loaded wrongly, not listened",
        ),
        (
            "warning",
            validation["max_volume_ratio"],
            "max_volume_ratio",
            "weekends and launches stay well below",
        ),
    )
    for severity, limit, name, why in limits:
        checks.append(
            Check(
                "DQ-VOLUME",
                "volume_ratio",
                "occurred_at",
                severity,
                shown,
                f"at most {limit:g} times the median of the {len(present)} days before (validation.{name})",
                "look for a partition loaded more than once or into the wrong day, repair it and run "
                "extract again",
                why,
                maximum=limit,
            )
        )
    if usual >= 10 * validation["absurd_volume_ratio"]:
        checks.append(
            Check(
                "DQ-VOLUME",
                "volume_ratio",
                "occurred_at",
                "critical",
                shown,
                f"at least 1/{validation['absurd_volume_ratio']:g} of the median of the {len(present)} "
                "days before "
                "(validation.absurd_volume_ratio)",
                "the day is all but empty: wait for the rest of it, then run extract again",
                "as good as an empty day; judged only where that leaves 10 rows or more",
                minimum=1 / validation["absurd_volume_ratio"],
            )
        )
    least = min(present)
    if least >= FEW_ROWS:
        metrics["share_of_least_day"] = today.ordinary / least
        checks.append(
            Check(
                "DQ-VOLUME",
                "share_of_least_day",
                "occurred_at",
                "warning",
                f"{shown}; the emptiest of the {len(present)} days before has {least:,}",
                f"at least {_percent(SHORT_DAY)} of the emptiest day before",
                "if the day is still arriving, run again when it is whole; nothing to do if it was "
                "short (a closing, a holiday)",
                "a half-arrived day makes users look inactive",
                minimum=SHORT_DAY,
            )
        )


def _gaps(
    found: Profile,
    table: str,
    item_type: str | None,
    usual: float,
    validation: Mapping[str, Any],
    metrics: dict[str, float | int | None],
    checks: list[Check],
) -> None:
    """Empty days before as_of, unless that weekday is usually empty (a shop closed on Saturdays)."""
    total: dict[date, int] = {}
    for rows_by_day in found.window.values():
        for day, rows in rows_by_day.items():
            total[day] = total.get(day, 0) + rows
    # A day that all tables lack is told once, by the suite of all tables.
    looked_at = (
        total if item_type is None else {d: r for d, r in found.window[item_type].items() if total.get(d)}
    )
    known = {date.fromisoformat(str(day)) for day in validation["known_gaps"]}
    drift = set(found.days(validation["drift_days"]))
    older = [day for day in looked_at if day < found.as_of and day not in drift]
    by_weekday: dict[int, list[bool]] = {}
    for day, rows in looked_at.items():
        if day < found.as_of:
            by_weekday.setdefault(day.weekday(), []).append(rows == 0)
    closed = {
        weekday for weekday, empty in by_weekday.items() if len(empty) > 1 and sum(empty) / len(empty) >= 0.5
    }
    unusual = [
        day
        for day in sorted(drift & set(looked_at))
        if not looked_at[day] and day.weekday() not in closed and day not in known
    ]
    older_gaps = [day for day in older if not looked_at[day] and day.weekday() not in closed]
    if usual < FEW_ROWS:
        return
    metrics["new_empty_days"] = len(unusual)
    is_new = len(older) >= GAP_HISTORY_DAYS and not older_gaps
    listed = ", ".join(day.isoformat() for day in unusual[:5])
    checks.append(
        Check(
            "DQ-GAPS",
            "new_empty_days",
            "occurred_at",
            "critical" if is_new else "warning",
            f"{len(unusual)} empty day(s) ({listed}), a usual day has {usual:,.0f} rows",
            "no empty day in the last "
            f"{len(drift)} days, but for weekdays that are always empty and validation.known_gaps",
            "load the missing days and run extract again; if they are lost, name them in "
            "validation.known_gaps",
            "critical if the window knew no gap before; else the source is known to have them",
            maximum=0,
        )
    )


def _reasons(rejects: Sequence[Rejects]) -> str:
    """The four commonest reasons with their columns and rows."""
    ordered = sorted(rejects, key=lambda r: (-r.rows, r.reason))
    return ", ".join(f"{r.reason} ({column_of(r.reason, r.table)}): {r.rows:,}" for r in ordered[:4])


def _faults(
    found: Profile,
    table: str,
    counted: int,
    today: Counts,
    before: Sequence[Counts],
    rejects: Sequence[Rejects],
    validation: Mapping[str, Any],
    metrics: dict[str, float | int | None],
    checks: list[Check],
) -> None:
    """Shares of rows set aside as faults: of the day, the window, by reason; short plays, missing fields."""
    own = [r for r in rejects if not r.reason.startswith("unknown_") or r.reason == "unknown_event"]
    aside = {r.reason: r.rows - r.capped_user_rows for r in own}
    ordinary = counted + sum(aside.values())
    faults = [
        Rejects(table, r.reason, aside[r.reason], r.rows_of_day, 0, r.users, r.titles)
        for r in own
        if is_fault(r.reason) and aside[r.reason]
    ]
    total = sum(r.rows for r in faults)
    limit = validation["max_reject_share"]
    columns = ", ".join(sorted({column_of(r.reason, table) for r in faults}))
    of_day = [Rejects(table, r.reason, r.rows_of_day, 0, 0, 0, 0) for r in faults if r.rows_of_day]
    worst = max(faults, key=lambda r: (r.rows, r.reason)).reason if faults else ""
    for metric, part, whole, listed, span in (
        ("fault_share_of_day", today.faults, today.ordinary, of_day, f"on {found.as_of}"),
        ("fault_share_of_window", total, ordinary, faults, f"between {found.first_day} and {found.as_of}"),
    ):
        metrics[metric] = _share(part, whole)
        checks.append(
            Check(
                "DQ-REJECTS",
                metric,
                columns,
                "critical",
                f"{part:,} of {whole:,} rows {span} set aside as faults ({_reasons(listed)})",
                f"at most {_percent(limit)} (validation.max_reject_share)",
                reason_of(worst).remedy + "; then run extract again" if worst else "",
                "what is left would no longer stand for the listening",
                maximum=limit,
            )
        )
    for r in faults:
        metric = f"share_of_{r.reason}"
        metrics[metric] = max(_share(r.rows, ordinary), _share(min(r.rows_of_day, r.rows), today.ordinary))
        checks.append(
            Check(
                "DQ-REJECTS",
                metric,
                column_of(r.reason, table),
                "warning",
                f"{r.rows:,} of {ordinary:,} rows of the window ({r.rows_of_day:,} on {found.as_of}) set "
                f"aside as {r.reason}",
                f"at most {_percent(NOTICED_SHARE)} of the window and of the day",
                reason_of(r.reason).remedy,
                "one row of a hundred is no accident",
                maximum=NOTICED_SHARE,
            )
        )
    comparable = [c for c in before if c.ordinary >= FEW_ROWS]
    if len(comparable) < ENOUGH_DAYS or today.ordinary < ENOUGH_FOR_SHARES:
        return
    for metric, column, jump, code, name, remedy in (
        (
            "short_play_jump",
            "seconds_played",
            SHARE_JUMP,
            "DQ-SECONDS",
            "too_short",
            "has the unit of seconds_played changed? If listening itself changed, nothing is to be done",
        ),
        (
            "missing_field_jump",
            "user_id",
            NULL_JUMP,
            "DQ-NULLS",
            "nulls",
            "see the reject table for the field that is missing, and the source's last change",
        ),
    ):
        usual = statistics.median(getattr(c, name) / c.ordinary for c in comparable)
        share = getattr(today, name) / today.ordinary
        metrics[metric] = share - usual
        what = "too short to count" if name == "too_short" else "without user, title, event or seconds"
        checks.append(
            Check(
                code,
                metric,
                column,
                "warning",
                f"{getattr(today, name):,} of {today.ordinary:,} rows ({_percent(share)}) {what} on "
                f"{found.as_of}, "
                f"usually {_percent(usual)}",
                f"at most {100 * jump:g} points above the median of the {len(comparable)} days before",
                remedy,
                "a jump is a change of the source; a level is its nature",
                maximum=jump,
            )
        )


def _unknown(
    found: Profile,
    table: str,
    item: str,
    counted: int,
    today: Counts,
    rejects: Sequence[Rejects],
    validation: Mapping[str, Any],
    metrics: dict[str, float | int | None],
    checks: list[Check],
) -> None:
    """Referential integrity: events that name a title or a user that the other tables lack."""
    limit = validation["max_unknown_share"]
    by_reason = {r.reason: r for r in rejects}
    of_day = {"unknown_item_id": today.unknown_items, "unknown_user_id": today.unknown_users}
    for reason, column in (("unknown_item_id", item), ("unknown_user_id", "user_id")):
        if reason == "unknown_user_id" and not found.users:
            continue  # an empty users table is told by its own suite
        r = by_reason.get(reason, Rejects(table, reason, 0, 0, 0, 0, 0))
        ids = r.titles if reason == "unknown_item_id" else r.users
        other = {"track_id": "tracks", "podcast_id": "podcasts", "audiobook_id": "audiobooks"}.get(
            column, "users"
        )
        metric = f"{reason}_share"
        metrics[metric] = max(_share(r.rows, counted), _share(of_day[reason], today.counted))
        shown = (
            f"{r.rows:,} of {counted:,} rows of the window ({of_day[reason]:,} of {today.counted:,} on "
            f"{found.as_of}) "
            f"naming {ids:,} id(s) that {other}.{column} lacks"
        )
        for severity, bound, why in (
            (
                "critical",
                limit,
                "events on unknown titles are lost to the graph; users without attributes look alike",
            ),
            (
                "warning",
                NOTICED_SHARE,
                "a new title may be a day ahead of the catalogue, not one row of a hundred",
            ),
        ):
            setting = " (validation.max_unknown_share)" if severity == "critical" else ""
            checks.append(
                Check(
                    "DQ-UNKNOWN-IDS",
                    metric,
                    column,
                    "critical" if severity == "critical" else "warning",
                    shown,
                    f"at most {_percent(bound)}{setting}",
                    f"load {other} as of {found.as_of}, or check that both tables write ids alike; then "
                    "run extract again",
                    why,
                    maximum=bound,
                )
            )


def _bots(
    found: Profile,
    table: str,
    today: Counts,
    extract: Mapping[str, Any],
    metrics: dict[str, float | int | None],
    checks: list[Check],
) -> None:
    if not today.source_rows:
        return
    cap = extract["max_events_per_user_day"]
    metrics["largest_user_share"] = _share(today.largest_user_rows, today.source_rows, BOT_FLOOR)
    metrics["quarantined_share"] = _share(today.quarantined, today.source_rows, BOT_FLOOR)
    remedy = (
        "look at the account(s) in the day's rejects.parquet, block them in the source; the run goes on with "
        f"at most {cap:,} events each (extract.max_events_per_user_day)"
    )
    checks.append(
        Check(
            "DQ-BOT",
            "largest_user_share",
            "user_id",
            "warning",
            f"one user made {today.largest_user_rows:,} of {today.source_rows:,} rows on {found.as_of}; "
            f"{today.quarantined:,} rows of {today.capped_users:,} user(s) were quarantined",
            f"at most {_percent(BOT_SHARE)} of a day's rows from one user",
            remedy,
            "no person listens to so much",
            maximum=BOT_SHARE,
        )
    )
    checks.append(
        Check(
            "DQ-BOT",
            "quarantined_share",
            "user_id",
            "warning",
            f"{today.quarantined:,} of {today.source_rows:,} rows on {found.as_of} quarantined: "
            f"{today.capped_users:,} of "
            f"{today.users:,} user(s) had more than {cap:,} events",
            f"at most {_percent(BOT_SHARE)} of a day's rows",
            remedy + "; raise the setting if these are people",
            "many capped users mean a cap too low or an attack",
            maximum=BOT_SHARE,
        )
    )


def _event_mix(
    found: Profile, item_type: str, metrics: dict[str, float | int | None], checks: list[Check]
) -> None:
    mix = found.mix[item_type]
    today, before = sum(t for t, _ in mix.values()), sum(b for _, b in mix.values())
    if len(mix) < 2 or today < ENOUGH_FOR_SHARES or before < ENOUGH_FOR_SHARES:
        return
    metrics["event_mix_distance"] = sum(abs(t / today - b / before) for t, b in mix.values()) / 2
    shown = ", ".join(
        f"{event} {_percent(t / today)} (usually {_percent(b / before)})" for event, (t, b) in mix.items()
    )
    checks.append(
        Check(
            "DQ-EVENT-MIX",
            "event_mix_distance",
            "event",
            "warning",
            f"{shown} on {found.as_of}",
            f"a total variation of at most {MIX_DISTANCE:g} from the days before",
            "ask what changed in the player or in the mapping of events",
            "kinds of event carry different weight",
            maximum=MIX_DISTANCE,
        )
    )
    gone = [
        event
        for event, (t, b) in mix.items()
        if not t and b / before >= COMMON_EVENT and today * b / before >= FEW_ROWS
    ]
    metrics["vanished_events"] = len(gone)
    checks.append(
        Check(
            "DQ-EVENT-MIX",
            "vanished_events",
            "event",
            "warning",
            f"no {', '.join(gone)} on {found.as_of}, usually {shown}",
            f"every event that usually makes {_percent(COMMON_EVENT)} of the rows",
            "look for a renamed event among the rejects (unknown_event), or a lost feed",
            "a feed may fail alone",
            maximum=0,
        )
    )


def _play_length(
    found: Profile, item_type: str, metrics: dict[str, float | int | None], checks: list[Check]
) -> None:
    by_day = found.seconds[item_type]
    rows, seconds = by_day.get(found.as_of, (0, 0.0))
    before = [s / r for day, (r, s) in by_day.items() if day < found.as_of and r >= FEW_ROWS]
    if rows < ENOUGH_FOR_SHARES or len(before) < ENOUGH_DAYS:
        return
    usual = statistics.median(before)
    if usual <= 0:
        return
    metrics["play_length_ratio"] = seconds / rows / usual
    checks.append(
        Check(
            "DQ-SECONDS",
            "play_length_ratio",
            "seconds_played",
            "warning",
            f"a mean of {seconds / rows:,.0f} s a stream on {found.as_of} ({rows:,} streams), usually "
            f"{usual:,.0f} s",
            f"between 1/{SECONDS_RATIO:g} and {SECONDS_RATIO:g} times the usual",
            "has the unit of seconds_played changed (minutes, milliseconds)? Mend it and reload the day",
            "a unit that changed is off by 60 or 1000",
            minimum=1 / SECONDS_RATIO,
            maximum=SECONDS_RATIO,
        )
    )


def _row_checks(item_type: str, item: str, extract: Mapping[str, Any]) -> list[RowCheck]:
    """What extract promises of each row that counts; a break is this project's fault, not the source's."""
    promised = "extract promises it of every row that counts"
    remedy = "a fault of extract: report it with the day's manifest, and run extract with --force"
    columns = ["item_type", "user_id", "item_id", "event", "occurred_at", "listened_seconds"]
    checks = [
        RowCheck(
            "DQ-CONTRACT",
            "",
            "columns",
            "critical",
            f"the columns {', '.join(columns)}",
            remedy,
            promised,
            {"column_set": columns},
        ),
        RowCheck(
            "DQ-CONTRACT",
            "event",
            "in_set",
            "critical",
            f"one of {', '.join(EVENTS[item_type])}",
            remedy,
            promised,
            {"value_set": list(EVENTS[item_type])},
        ),
        RowCheck(
            "DQ-CONTRACT",
            "listened_seconds",
            "between",
            "critical",
            f"0 to {extract['max_seconds']:,} s (extract.max_seconds)",
            remedy,
            promised,
            {"min_value": 0, "max_value": extract["max_seconds"]},
        ),
    ]
    checks += [
        RowCheck("DQ-CONTRACT", column, "not_null", "critical", "a value", remedy, promised)
        for column in ("user_id", "item_id", "occurred_at")
    ]
    return checks


def _together(found: Profile, validation: Mapping[str, Any]) -> Suite:
    """What only shows over all event tables: the day is there, no day is lost, history is what it says."""
    total: dict[date, int] = {}
    for by_day in found.window.values():
        for day, rows in by_day.items():
            total[day] = total.get(day, 0) + rows
    with_rows = [day for day, rows in total.items() if rows]
    last = max(with_rows) if with_rows else None
    usual = _usual([total.get(day, 0) for day in found.days(validation["drift_days"])])
    metrics: dict[str, float | int | None] = {
        "counted_rows_in_window": sum(total.values()),
        "days_since_last_event": (found.as_of - last).days if last else None,
        **found.history,
    }
    allowed = validation["freshness_days"]
    checks = [
        Check(
            "DQ-EMPTY-DAY",
            "days_since_last_event",
            "occurred_at",
            "critical",
            f"0 rows that count on {found.as_of} in any event table; the last before is of {last}, "
            f"a usual day has {usual:,.0f}",
            f"rows no older than {allowed} day(s) before as_of (validation.freshness_days)",
            "load the day and run extract again; if the source is closed on such days, raise "
            "validation.freshness_days",
            "measured against as_of, never against the clock, so a backfill is judged like the day itself",
            maximum=allowed,
        )
    ]
    _gaps(found, "interactions", None, usual, validation, metrics, checks)
    checks += [
        Check(
            "DQ-CONTRACT",
            metric,
            column,
            "critical",
            f"{found.history[metric]:,} row(s)",
            "none",
            "a fault of extract: report it with the manifest, and run extract with --force",
            "readers compare these dates with their own cut; one after as_of is a leak",
            maximum=0,
        )
        for metric, column in (
            ("repeated_first_streams", "item_id"),
            ("first_streams_after_as_of", "first_streamed_on"),
            ("repeated_first_signals", "user_id"),
            ("first_signals_after_as_of", "first_signal_on"),
        )
    ]
    return Suite("interactions", metrics, checks)
