"""Time (design 4): the cuts of a run and the window that each of them sees.

Everything follows from `as_of`, the last day of data. All days are UTC and inclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from audiorec.settings import Time

FIRST_DAY = date(2000, 1, 1)
"""No event before this day is believed; also the start of a window of `all` days."""


@dataclass(frozen=True)
class Cut:
    """What a graph or a feature may know: events of the days first_day..last_day."""

    name: str
    first_day: date
    last_day: date


@dataclass(frozen=True)
class TargetBlock:
    """Days first_day..last_day whose first streams are targets, with the cut their graph ends on."""

    first_day: date
    last_day: date
    cut: Cut


@dataclass(frozen=True)
class Cuts:
    """The cuts of one `as_of`: what trains, what judges, what serves."""

    as_of: date
    split: date
    blocks: tuple[TargetBlock, ...]
    judge: Cut
    release: Cut
    window_days: int | Literal["all"]

    @property
    def train(self) -> Cut:
        """The earliest block's cut: HGNN and artist vectors are fitted on it."""
        return self.blocks[0].cut

    @property
    def all_cuts(self) -> tuple[Cut, ...]:
        return (*(block.cut for block in self.blocks), self.judge, self.release)

    @property
    def first_day(self) -> date:
        """The first day that any cut of this run reads."""
        return self.train.first_day

    def window(self, last_day: date, name: str = "") -> Cut:
        """The window that ends on `last_day`."""
        return Cut(name or last_day.isoformat(), window_start(last_day, self.window_days), last_day)


def window_start(last_day: date, window_days: int | Literal["all"]) -> date:
    """First day of the window of `window_days` that ends on `last_day`."""
    if window_days == "all":
        return FIRST_DAY
    return max(FIRST_DAY, last_day - timedelta(days=window_days - 1))


def cuts(as_of: date, time: Time) -> Cuts:
    """Lay the cuts of a run.

    The hold-out is the last `holdout_days` up to `as_of`; before it lie `target_blocks` blocks of
    `target_days`. Block b's graph ends on the day before the block begins.
    """
    day = timedelta(days=1)
    split = as_of - (time.holdout_days - 1) * day

    def cut(name: str, last_day: date) -> Cut:
        return Cut(name, window_start(last_day, time.window_days), last_day)

    blocks = []
    for number in range(time.target_blocks):
        first = split - time.target_days * (time.target_blocks - number) * day
        name = "train" if number == 0 else f"train_{number + 1}"
        blocks.append(TargetBlock(first, first + (time.target_days - 1) * day, cut(name, first - day)))
    return Cuts(
        as_of, split, tuple(blocks), cut("judge", split - day), cut("release", as_of), time.window_days
    )
