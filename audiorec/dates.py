"""Which day a run is about: one pure function, called once a run, whose answer every task is handed.

Airflow knows four dates of a run (logical date, both ends of the data interval, run-after) and they disagree
with each other in ways that depend on how the run began. Nothing outside this module may look at them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from audiorec.errors import BadSettings

ONE_DAY = timedelta(days=1)
AUTOMATIC_RUN_TYPES = frozenset({"scheduled", "backfill"})
DATE_PATTERN = r"^\d{4}-\d{2}-\d{2}$"


@dataclass(frozen=True)
class RunFacts:
    """What Airflow says about a run; every time is aware, and absent where Airflow has none.

    A run triggered by the API with `logical_date: null` has no logical date and no data interval, even if the
    caller sent one (Airflow 3.3 drops it), so every field but the run type may be missing.
    """

    run_type: str
    logical_date: datetime | None = None
    data_interval_start: datetime | None = None
    data_interval_end: datetime | None = None
    run_after: datetime | None = None

    @classmethod
    def from_dag_run(cls, dag_run: Any) -> RunFacts:
        """Read the facts off Airflow's `dag_run` (of a task's or a callback's context)."""
        run_type = dag_run.run_type
        return cls(
            run_type=str(getattr(run_type, "value", run_type)),
            logical_date=dag_run.logical_date,
            data_interval_start=dag_run.data_interval_start,
            data_interval_end=dag_run.data_interval_end,
            run_after=dag_run.run_after,
        )


def parse_date(text: str, what: str = "as_of") -> date:
    """A date written YYYY-MM-DD, and nothing else (`date.fromisoformat` also takes 20261123 and 2026-W48-1).

    Raises:
        BadSettings: anything else, or a day that no calendar has.
    """
    if re.match(DATE_PATTERN, text):
        try:
            return date.fromisoformat(text)
        except ValueError:
            pass
    raise BadSettings(f"{what} is {text!r}, expected a date written YYYY-MM-DD, such as 2026-11-23")


def resolve_as_of(params: Mapping[str, Any], facts: RunFacts) -> date:
    """The last day of data that a run is about, UTC.

    - scheduled or backfill: the day of `data_interval_start`; the Param `as_of` is refused.
    - by hand with the Param `as_of`: the Param.
    - by hand without it, with a logical date: the day of `data_interval_start`, which is the last complete
      day before the logical date (2026-11-24 10:00 means 2026-11-23, and so does 2026-11-24 00:00).
    - by hand with neither: the day before `run_after`.

    "By hand" is every other run type, also a run started by another DAG or for an asset. The UI's form fills
    the logical date with now, so an untouched form means yesterday.

    Why not the logical date itself: a manual run of logical date 2026-11-20 gets the interval of 2026-11-19,
    a backfill of the same date that of 2026-11-20. Only the interval says what the run is about, and where it
    contradicts the rest of the run this function stops it rather than choose.

    Raises:
        BadSettings: a Param where none is allowed, a date that is none, an interval that is not one UTC day,
            or facts that contradict each other; each with what to do.
    """
    requested = params.get("as_of")
    start, end = _utc(facts.data_interval_start), _utc(facts.data_interval_end)
    logical = _utc(facts.logical_date)

    if facts.run_type in AUTOMATIC_RUN_TYPES:
        if requested is not None:
            raise BadSettings(
                f"a {facts.run_type} run takes its date from its data interval, but the Param as_of is "
                f"{requested!r}. Leave as_of out of the backfill's configuration, or trigger it by hand"
            )
        day = _one_day(start, end, facts.run_type)
        if logical != start:
            # A backfill over a date that a manual run already has re-labels that run and keeps its interval,
            # which is the day before.
            raise BadSettings(
                f"this {facts.run_type} run has the logical date {logical}, but its data interval begins "
                f"{start}: it was first made by hand, for the day before. Delete this run and create the "
                "backfill again"
            )
        return day

    if requested is not None:
        day = parse_date(str(requested))
        if (
            start is not None
            and logical is not None
            and start.date() != day
            and not _given_by_airflow(logical, start, end)
        ):
            raise BadSettings(
                f"the Param as_of says {day}, but the data interval set by hand begins {start}. Give only one"
            )
        return day
    if start is not None or end is not None:
        return _one_day(start, end, facts.run_type)
    run_after = _utc(facts.run_after)
    if run_after is None:
        raise BadSettings("the run has no as_of, no data interval and no run_after; trigger it with as_of")
    return run_after.date() - ONE_DAY


def end_of(day: date) -> datetime:
    """The moment at which a data date is over: the next midnight, UTC."""
    return datetime.combine(day + timedelta(days=1), time(0), UTC)


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise BadSettings(f"{moment} has no time zone; Airflow's times are expected in UTC")
    # Rebuilt as a plain datetime: Airflow hands out pendulum's, whose arithmetic returns other types.
    moment = moment.astimezone(UTC)
    return datetime.combine(moment.date(), moment.time(), UTC)


def _one_day(start: datetime | None, end: datetime | None, run_type: str) -> date:
    if start is None or end is None or start.time() != time(0) or end - start != ONE_DAY:
        raise BadSettings(
            f"the data interval of this {run_type} run is {start} to {end}, expected one UTC day, midnight "
            "to midnight. Leave the interval empty and give the date as the Param as_of"
        )
    return start.date()


def _given_by_airflow(logical: datetime, start: datetime, end: datetime | None) -> bool:
    """Whether an interval merely follows from the logical date, and so says nothing that a person meant.

    It does if it is the last complete day before the logical date (what Airflow infers for a manual run) or
    the day that the schedule has under that logical date (what a run that takes a schedule's place has).
    """
    midnight = datetime.combine(logical.date(), time(0), UTC)
    return (start, end) in {(midnight - ONE_DAY, midnight), (logical, logical + ONE_DAY)}
