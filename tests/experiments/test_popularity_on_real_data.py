"""Popularity on the shared real data: the figures of the reference table, to three decimals.

They were measured by other code before this project's first line, so they check extract, first streams,
segments, panels and metrics together.
"""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from audiorec.catalogue import load_extract
from audiorec.cuts import cuts
from audiorec.experiments.protocol import judge, make_hold_out, popularity_ranker
from audiorec.features import FeatureBuilder, FeatureConfig
from audiorec.runner import run_task
from audiorec.settings import load_settings
from audiorec.store import Store
from audiorec.taskio import Inputs
from models.metrics import hit_rate_at_k, reciprocal_rank

DATA = Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = [pytest.mark.long, pytest.mark.real_data, pytest.mark.timeout(300)]

# last day, days of hold-out, split; test users, warm, cold; all time: HR@10, MRR, HR@10 of warm and of cold;
# HR@10 by window of recent days; MRR by window where the table has it.
SOURCES = {
    "movietweetings": (
        (date(2013, 9, 1), 29, date(2013, 8, 4)),
        (1_230, 944, 286),
        {"all": (0.100, 0.046), "warm": 0.104, "cold": 0.087},
        {7: 0.086, 14: 0.105, 30: 0.106, 60: 0.094},
        {},
    ),
    "ciao": (
        (date(2004, 6, 30), 182, date(2004, 1, 1)),
        (343, 289, 54),
        {"all": (0.586, 0.324)},
        {7: 0.446, 14: 0.475, 30: 0.539, 60: 0.574},
        {},
    ),
    "online_retail": (
        (date(2011, 12, 9), 31, date(2011, 11, 9)),
        (1_042, 1_016, 26),
        {"all": (0.279, 0.135)},
        {7: 0.439, 14: 0.439, 30: 0.415, 60: 0.412},
        {7: 0.226},
    ),
}


def rounded(value: float) -> float:
    return round(float(value), 3)


@pytest.mark.parametrize("name", SOURCES)
def test_popularity_equals_the_reference(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not (DATA / name).is_dir():
        message = f"the shared real data is not at {DATA / name}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    (as_of, holdout_days, split), users, all_time, by_window, mrr_by_window = SOURCES[name]
    # Thousands of small files that nobody will miss after a power cut: waiting for the disk is half of the time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    settings = load_settings(
        source={"uri": str(DATA / name)},
        store={"uri": str(tmp_path / "store"), "scratch": str(tmp_path / "scratch")},
        time={"window_days": "all", "holdout_days": holdout_days},
        privacy={"user_ids": "as_given"},
    )
    result = run_task("extract", settings, as_of)
    store = Store(settings.store.uri, settings.store.scratch)
    inputs = Inputs(as_of, store, {"extract": store.read_uri(result["manifest"])})
    extract, all_cuts = load_extract(settings, inputs), cuts(as_of, settings.time)
    assert all_cuts.split == split
    hold_out = make_hold_out(extract, all_cuts, settings.evaluation)
    no_artists = np.zeros((len(extract.artists), 1), np.float32)
    builder = FeatureBuilder(
        extract,
        FeatureConfig(window_days="all"),
        no_artists,
        np.zeros(len(no_artists), bool),
        all_cuts.first_day,
    )

    def ranks(counts: np.ndarray) -> np.ndarray:
        return judge(hold_out, popularity_ranker(counts)).ranks["known"]

    found = ranks(builder.listeners(0, hold_out.split))
    # The reference judges users with any event before the split: warm and cold.
    in_segment = {segment: (hold_out.segment == segment) & (found >= 0) for segment in ("warm", "cold")}
    judged = in_segment["warm"] | in_segment["cold"]
    assert (judged.sum(), in_segment["warm"].sum(), in_segment["cold"].sum()) == users
    hit_rate, mrr = all_time["all"]
    assert rounded(hit_rate_at_k(found[judged]).mean()) == hit_rate
    assert rounded(reciprocal_rank(found[judged]).mean()) == mrr
    for segment in {"warm", "cold"} & set(all_time):
        assert rounded(hit_rate_at_k(found[in_segment[segment]]).mean()) == all_time[segment]
    for window, expected in by_window.items():
        recent = ranks(builder.streams(hold_out.split - window, hold_out.split))[judged]
        assert rounded(hit_rate_at_k(recent).mean()) == expected, window
        if window in mrr_by_window:
            assert rounded(reciprocal_rank(recent).mean()) == mrr_by_window[window]
