"""The date of a run, for every way a run can begin (traps 1 to 3 were measured on Airflow 3.3.2)."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiorec.dates import RunFacts, parse_date, resolve_as_of
from audiorec.errors import BadSettings

NONE: dict[str, object] = {"as_of": None}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def automatic(run_type: str, day: str) -> RunFacts:
    """What the timetable makes: logical date and start of the interval at the same midnight."""
    start = at(day)
    return RunFacts(run_type, start, start, start + timedelta(days=1), start + timedelta(days=1))


def by_hand(logical: str) -> RunFacts:
    """What Airflow makes of a manual run with a logical date: the last complete day before it."""
    moment = at(logical)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return RunFacts("manual", moment, midnight - timedelta(days=1), midnight, moment)


@pytest.mark.parametrize("run_type", ["scheduled", "backfill"])
def test_automatic_runs_are_about_the_day_that_their_interval_begins(run_type: str):
    assert resolve_as_of(NONE, automatic(run_type, "2026-11-20")) == date(2026, 11, 20)


@pytest.mark.parametrize("run_type", ["scheduled", "backfill"])
def test_automatic_runs_refuse_the_param(run_type: str):
    with pytest.raises(BadSettings, match=r"Param as_of is '2026-11-20'.*backfill's configuration"):
        resolve_as_of({"as_of": "2026-11-20"}, automatic(run_type, "2026-11-20"))


def test_a_manual_run_is_about_its_param():
    assert resolve_as_of({"as_of": "2013-08-17"}, by_hand("2026-11-24T10:30")) == date(2013, 8, 17)


@pytest.mark.parametrize("logical", ["2026-11-24T00:00", "2026-11-24T10:30", "2026-11-24T23:59:59"])
def test_the_untouched_form_means_yesterday(logical: str):
    """The form fills the logical date with now; the last complete day is the one before."""
    assert resolve_as_of(NONE, by_hand(logical)) == date(2026, 11, 23)


def test_logical_date_null_means_the_day_before_run_after():
    """Trap 3: no logical date, no interval, no `ds`."""
    facts = RunFacts("manual", run_after=at("2026-11-24T00:00"))
    assert resolve_as_of(NONE, facts) == date(2026, 11, 23)
    assert resolve_as_of({"as_of": "2026-11-01"}, facts) == date(2026, 11, 1)


def test_a_backfill_over_a_run_made_by_hand_is_stopped():
    """Trap 2: the manual run of logical date 11-20 00:00 has the interval of 11-19; a backfill of 11-20
    re-labels that run and keeps its interval, so it would build the wrong day and call it done."""
    manual = by_hand("2026-11-20T00:00")
    relabelled = RunFacts(
        "backfill", manual.logical_date, manual.data_interval_start, manual.data_interval_end
    )
    with pytest.raises(BadSettings, match="first made by hand, for the day before"):
        resolve_as_of(NONE, relabelled)


def test_a_run_that_takes_the_place_of_a_scheduled_one_is_about_its_param():
    """`audiorec run` gives its run the logical date and interval of yesterday's scheduled run."""
    facts = RunFacts("manual", at("2026-11-23"), at("2026-11-23"), at("2026-11-24"), at("2026-11-24T10:00"))
    assert resolve_as_of({"as_of": "2013-08-17"}, facts) == date(2013, 8, 17)
    assert resolve_as_of(NONE, facts) == date(2026, 11, 23)


def test_an_interval_set_by_hand_is_followed():
    facts = RunFacts(
        "manual", at("2026-11-24T10:00"), at("2026-11-10"), at("2026-11-11"), at("2026-11-24T10:00")
    )
    assert resolve_as_of(NONE, facts) == date(2026, 11, 10)


def test_an_interval_set_by_hand_may_not_contradict_the_param():
    facts = RunFacts(
        "manual", at("2026-11-24T10:00"), at("2026-11-10"), at("2026-11-11"), at("2026-11-24T10:00")
    )
    assert resolve_as_of({"as_of": "2026-11-10"}, facts) == date(2026, 11, 10)
    with pytest.raises(
        BadSettings, match=r"says 2026-11-12, but the data interval set by hand begins 2026-11-10"
    ):
        resolve_as_of({"as_of": "2026-11-12"}, facts)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-11-10T00:00", "2026-11-13T00:00"),  # three days
        ("2026-11-10T03:00", "2026-11-11T03:00"),  # the cron was moved to 03:00
        ("2026-11-10T00:00", "2026-11-10T00:00"),  # the zero-length interval of a trigger timetable
    ],
)
@pytest.mark.parametrize("run_type", ["manual", "scheduled"])
def test_an_interval_that_is_not_one_day_is_refused(run_type: str, start: str, end: str):
    with pytest.raises(BadSettings, match="expected one UTC day"):
        resolve_as_of(NONE, RunFacts(run_type, at(start), at(start), at(end), at(end)))


@pytest.mark.parametrize(
    "text", ["2026-02-30", "20261123", "2026-W48-1", "23.11.2026", "2026-11-23T00:00", "", " "]
)
def test_only_dates_are_dates(text: str):
    with pytest.raises(BadSettings, match="YYYY-MM-DD"):
        parse_date(text)
    with pytest.raises(BadSettings, match="YYYY-MM-DD"):
        resolve_as_of({"as_of": text}, by_hand("2026-11-24T10:00"))


def test_nothing_to_go_by_is_an_error():
    with pytest.raises(BadSettings, match="no as_of"):
        resolve_as_of(NONE, RunFacts("manual"))
    with pytest.raises(BadSettings, match="expected one UTC day"):
        resolve_as_of(NONE, RunFacts("scheduled"))


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(BadSettings, match="no time zone"):
        resolve_as_of(NONE, RunFacts("manual", run_after=datetime(2026, 11, 24)))


def test_other_zones_are_brought_to_utc():
    """01:00 in Berlin is still yesterday in UTC, so the last complete UTC day is one more back."""
    berlin = timezone(timedelta(hours=1))
    facts = RunFacts("manual", run_after=datetime(2026, 11, 24, 0, 30, tzinfo=berlin))
    assert resolve_as_of(NONE, facts) == date(2026, 11, 22)


def test_a_run_started_by_another_dag_is_by_hand():
    assert resolve_as_of({"as_of": "2026-11-20"}, RunFacts("operator_triggered")) == date(2026, 11, 20)


@given(st.datetimes(min_value=datetime(2001, 1, 2), max_value=datetime(2099, 1, 1)))
def test_a_manual_run_never_reaches_into_a_day_that_is_not_over(moment: datetime):
    facts = by_hand(moment.isoformat())
    assert resolve_as_of(NONE, facts) == moment.date() - timedelta(days=1)
    assert resolve_as_of(
        NONE, RunFacts("manual", run_after=moment.replace(tzinfo=UTC))
    ) == moment.date() - timedelta(1)


@given(st.dates(min_value=date(2001, 1, 1)))
def test_a_backfill_of_a_day_is_about_that_day(day: date):
    if day < date(9999, 12, 31):
        assert resolve_as_of(NONE, automatic("backfill", day.isoformat())) == day


def test_facts_are_read_off_airflows_dag_run():
    class RunType:
        value = "backfill"

    class DagRun:
        run_type = RunType()
        logical_date = data_interval_start = at("2026-11-20")
        data_interval_end = run_after = at("2026-11-21")

    assert resolve_as_of(NONE, RunFacts.from_dag_run(DagRun())) == date(2026, 11, 20)
