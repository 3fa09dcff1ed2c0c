"""Faithfulness: the measurement takes away what it says, and tells true reasons from decoration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from audiorec.errors import BadData
from audiorec.faithfulness import LEAST_HISTORY, _lost, measure, write
from audiorec.recommend import Recommender

if TYPE_CHECKING:
    from released import Releases


@pytest.fixture
def recommender(releases: Releases) -> Recommender:
    return Recommender(releases.store, releases.bundle(releases.dates[0]), "1")


def test_what_is_lost_is_the_difference_of_two_scores(recommender: Recommender):
    row = recommender.row(str(recommender.example_users()["a warm user"]))
    profile = recommender.profiles.of_user(row)
    history: list[tuple[str, int]] = list(dict.fromkeys((one.item_type, one.idx) for one in profile.history))
    user = str(recommender.profiles.users["user_id"].iloc[row])
    found, lost = _lost(recommender, profile, history, user, 5)
    titles = recommender.recommend(user, 5)
    assert len(found) == len(titles) == len(lost)
    rows = np.array([recommender.idx("audiobook", one.audiobook_id) for one in titles])
    for place, title in enumerate(history):
        without = recommender.profiles.without_titles(profile, [title])
        expected = recommender.score(profile, rows) - recommender.score(without, rows)
        np.testing.assert_allclose(lost[:, place], expected, atol=1e-5)


def test_reasons_beat_decoration(recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As they are, and with evidence drawn by lot from the same history, which must come out as no better than chance."""
    found = measure(recommender, users=60, titles=8)
    assert found.users > 20
    assert found.difference.low > 0
    assert found.lowered.mean > 0.9
    page = write(found, recommender, tmp_path, "audiorec faithfulness --users 60")
    text = page.read_text()
    assert f"**{found.lowered.mean:.1%} [" in text
    assert (tmp_path / "faithfulness.png").stat().st_size > 5_000
    assert (
        (tmp_path / "faithfulness.csv")
        .read_text()
        .startswith("link,cases,lowered,cited,random,difference,low,high")
    )

    random, explain = np.random.default_rng(0), recommender.reasons.explain

    def by_lot(profile: Any, *rest: Any) -> Any:
        drawn = [
            (reason, profile.history[random.integers(len(profile.history))])
            for reason in explain(profile, *rest)
        ]
        return [
            reason
            if reason.evidence is None
            else replace(reason, evidence=replace(reason.evidence, item_type=one.item_type, idx=one.idx))
            for reason, one in drawn
        ]

    monkeypatch.setattr(recommender.reasons, "explain", by_lot)
    decoration = measure(recommender, users=60, titles=8)
    assert decoration.difference.mean < 0.3 * found.difference.mean


def test_without_a_history_there_is_nothing_to_measure(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
):
    titles, podcasts, music = recommender.profiles.activity()
    monkeypatch.setattr(
        recommender.profiles, "activity", lambda: (np.minimum(titles, LEAST_HISTORY - 1), podcasts, music)
    )
    with pytest.raises(BadData, match="nothing to measure"):
        measure(recommender, users=5)
