"""Time: the days of each cut, by hand and by property."""

from __future__ import annotations

from datetime import date, timedelta

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from audiorec.cuts import FIRST_DAY, Cut, cuts, window_start
from audiorec.settings import Time

DAY = timedelta(days=1)


def test_the_worked_example_of_the_design_to_the_day():
    """as_of 2026-11-23 with 90 days of history, 14 of hold-out, 14 of targets."""
    found = cuts(date(2026, 11, 23), Time())
    assert found.split == date(2026, 11, 10)
    assert found.train == Cut("train", date(2026, 7, 29), date(2026, 10, 26))
    (block,) = found.blocks
    assert (block.first_day, block.last_day) == (date(2026, 10, 27), date(2026, 11, 9))
    # Targets 10-27..11-06, stopping on 11-07..11-09: `find_targets` cuts them off (tests/audiorec/test_towers.py).
    assert block.last_day - 2 * DAY == date(2026, 11, 7)
    assert found.judge == Cut("judge", date(2026, 8, 12), date(2026, 11, 9))
    assert found.release == Cut("release", date(2026, 8, 26), date(2026, 11, 23))
    assert found.first_day == date(2026, 7, 29)
    assert [cut.name for cut in found.all_cuts] == ["train", "judge", "release"]


def test_all_history_begins_on_the_first_day_that_is_believed():
    found = cuts(date(2026, 11, 23), Time(window_days="all"))
    assert {cut.first_day for cut in found.all_cuts} == {FIRST_DAY} == {date(2000, 1, 1)}
    assert found.window(date(2026, 11, 1)) == Cut("2026-11-01", FIRST_DAY, date(2026, 11, 1))


def test_a_window_never_begins_before_that_day():
    assert window_start(date(2000, 1, 10), 90) == FIRST_DAY
    assert window_start(date(2000, 3, 30), 90) == FIRST_DAY
    assert window_start(date(2000, 3, 31), 90) == date(2000, 1, 2)
    assert window_start(date(2026, 11, 9), 1) == date(2026, 11, 9)


def test_earlier_blocks_lie_before_the_first_and_each_graph_ends_before_its_own():
    """Three blocks of 5 days before the split 2026-11-10: 10-26..10-30, 10-31..11-04, 11-05..11-09."""
    found = cuts(date(2026, 11, 23), Time(target_days=5, target_blocks=3, window_days=10))
    days = [(block.first_day, block.last_day) for block in found.blocks]
    assert days == [
        (date(2026, 10, 26), date(2026, 10, 30)),
        (date(2026, 10, 31), date(2026, 11, 4)),
        (date(2026, 11, 5), date(2026, 11, 9)),
    ]
    assert [block.cut for block in found.blocks] == [
        Cut("train", date(2026, 10, 16), date(2026, 10, 25)),
        Cut("train_2", date(2026, 10, 21), date(2026, 10, 30)),
        Cut("train_3", date(2026, 10, 26), date(2026, 11, 4)),
    ]
    assert found.train is found.blocks[0].cut
    assert found.first_day == date(2026, 10, 16)


times = st.builds(
    Time,
    window_days=st.integers(1, 400) | st.just("all"),
    holdout_days=st.integers(1, 60),
    target_days=st.integers(4, 40),
    target_blocks=st.integers(1, 5),
)


@given(as_of=st.dates(date(2001, 6, 1), date(2200, 1, 1)), time=times)
@hypothesis_settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_no_cut_sees_a_day_of_what_it_is_used_for(as_of: date, time: Time):
    found = cuts(as_of, time)
    for block in found.blocks:
        assert block.cut.last_day == block.first_day - DAY
        assert block.last_day < found.split
    assert found.judge.last_day == found.split - DAY
    assert (as_of - found.split).days + 1 == time.holdout_days
    assert found.release.last_day == as_of
    # The blocks lie side by side and fill the days before the split.
    covered = [(block.last_day - block.first_day).days + 1 for block in found.blocks]
    assert covered == [time.target_days] * time.target_blocks
    for earlier, later in zip(found.blocks, found.blocks[1:], strict=False):
        assert later.first_day == earlier.last_day + DAY
    assert found.blocks[-1].last_day == found.split - DAY
    # Windows: exactly window_days long unless history is too short, and read from first_day on.
    for cut in found.all_cuts:
        assert FIRST_DAY <= cut.first_day <= cut.last_day
        assert found.first_day <= cut.first_day
        if time.window_days != "all" and cut.first_day > FIRST_DAY:
            assert (cut.last_day - cut.first_day).days + 1 == time.window_days
    assert len({cut.name for cut in found.all_cuts}) == time.target_blocks + 2


@given(as_of=st.dates(date(2002, 1, 1), date(2100, 1, 1)), time=times)
@hypothesis_settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_the_next_day_moves_every_cut_by_a_day(as_of: date, time: Time):
    today, tomorrow = cuts(as_of, time), cuts(as_of + DAY, time)
    for one, other in zip(today.all_cuts, tomorrow.all_cuts, strict=True):
        assert other.last_day - one.last_day == DAY
        assert other.first_day - one.first_day in (DAY, timedelta(0))
