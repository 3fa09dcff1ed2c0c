"""The preset `paper` shows what section 3 of the paper reports of its data.

The figures are those of 10,000 users and one seed; each tolerance is three standard errors or more of what other
seeds give, so that a change of the generator shows and a change of the seed does not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from audiorec.simulator import GeneratedSummary, SimulatorConfig, preset, simulator_hash, sized
from audiorec.simulator import write_source_tables as write
from audiorec.simulator.calibration import (
    Calibration,
    Odds,
    Tables,
    as_table,
    logistic,
    measure,
    odds_after_signals,
    top_share,
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "paper"
    write(preset("paper", seed=1), folder)
    return folder


@pytest.fixture(scope="module")
def found(paper: Path) -> Calibration:
    return measure(paper)


def test_a_quarter_of_the_users_makes_three_quarters_of_the_hours(found: Calibration) -> None:
    # The paper: about 25% make 75%. Seeds differ by 0.005; the rest is room for rounding in "about".
    assert found.hours_of_top_quarter_of_users == pytest.approx(0.75, abs=0.02)


def test_the_top_fifth_of_the_audiobooks_has_over_80_percent_of_the_hours(found: Calibration) -> None:
    # The paper gives a lower bound; far above it nothing but the head would be left to recommend.
    assert 0.80 < found.hours_of_top_fifth_of_audiobooks < 0.92


def test_over_70_percent_of_first_audiobook_listeners_had_podcasts(found: Calibration) -> None:
    # A lower bound again. About one in eight of the listeners has no podcasts at all, so 0.88 is the most there can be.
    assert 0.70 < found.podcasts_before < 0.85


PLAIN = {
    "n_podcasts": 20,
    "podcast_starts": 0.01,
    "n_artists": 20,
    "n_tracks": 20,
    "music_plays": 0.01,
    "artists_per_user": 1.0,
}
"""Next to no podcasts and music, which have no part in the odds, to be quick."""


@pytest.fixture(scope="module")
def odds_of_many(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Odds]]:
    """Twice 40,000 users with audiobooks as in the preset."""
    folder = tmp_path_factory.mktemp("generated")
    odds = []
    for seed in (1, 2):
        write(sized("paper", 40_000, seed=seed, **PLAIN), folder / str(seed))
        odds.append(odds_after_signals(Tables(folder / str(seed))))
    return odds


@pytest.mark.parametrize(
    ("signal", "change", "tolerance"),
    [
        # The regression's standard errors of log(1 + change) with 40,000 users are 0.028, 0.027 and 0.021, so 0.020,
        # 0.019 and 0.015 for the mean of two; three of these, times 1 + change.
        ("follow", 1.18, 0.13),
        ("preview", 0.18, 0.067),
        ("intent_to_pay", 0.13, 0.051),
    ],
)
def test_odds_of_a_first_stream_after_a_signal(
    odds_of_many: list[dict[str, Odds]], signal: str, change: float, tolerance: float
) -> None:
    each = [odds[signal] for odds in odds_of_many]
    mean = np.exp(np.mean([np.log1p(odds.change) for odds in each])) - 1
    assert mean == pytest.approx(change, abs=tolerance)
    assert all(odds.low < odds.change < odds.high for odds in each)


def test_odds_of_the_preset_itself(found: Calibration) -> None:
    """10,000 users say less: the paper's figures lie within the 99.9% intervals (3.3 standard errors)."""
    for signal, change in (("follow", 1.18), ("preview", 0.18), ("intent_to_pay", 0.13)):
        odds = found.odds[signal]
        error = (np.log1p(odds.high) - np.log1p(odds.low)) / (2 * 1.96)
        assert np.log1p(odds.change) == pytest.approx(np.log1p(change), abs=3.3 * error), signal


def test_who_shares_something_is_alike(found: Calibration) -> None:
    """The paper shows densities without figures, so the tests ask for effects that a plot would show.

    A standard error of d with 5,000 pairs a side is 0.02. Titles joined by nothing but a podcast have no listener in
    common, which in a small catalogue leaves out the pairs that are most alike; hence the lower bound.
    """
    assert found.users_sharing_a_title.effect > 0.5
    assert found.co_listened_titles.effect > 0.5
    assert found.titles_joined_by_podcast_only.effect > 0.06
    for like in (found.users_sharing_a_title, found.co_listened_titles, found.titles_joined_by_podcast_only):
        assert like.pairs >= 1_000


def test_audiobooks_are_new_sparse_and_drifting(found: Calibration) -> None:
    assert found.audiobook_share_of_streams < 0.2
    assert found.titles_a_listener < 5
    assert found.filled < 0.005
    assert found.titles_new_in_period > 0.4
    # Popular titles stay popular for the most part, and not all of them.
    assert 0.1 < found.rank_correlation_of_popularity < 0.8


def test_the_events_span_90_days_without_dirt(paper: Path) -> None:
    tables = Tables(paper)
    assert tables.days == 90
    assert tables.first_day == (preset("paper").first_day - preset("paper").last_day).days + int(
        np.datetime64(preset("paper").last_day, "D").astype(int)
    )
    assert pq.read_table(paper / "audiobooks.parquet").num_rows == 2_000


def test_the_table_of_figures_names_every_figure_of_the_paper(found: Calibration) -> None:
    text = as_table(found)
    for figure in ("75%", "over 80%", "over 70%", "+118%", "+18%", "+13%"):
        assert f"| {figure} |" in text


def test_top_share_by_hand() -> None:
    # 100 + 50 of 200: the top quarter of four is the first, the top half the first two.
    amounts = np.array([30.0, 100.0, 20.0, 50.0])
    assert top_share(amounts, 0.25) == pytest.approx(0.5)
    assert top_share(amounts, 0.5) == pytest.approx(0.75)


def test_logistic_regression_by_hand() -> None:
    # One binary predictor: the coefficient is the log of the table's odds ratio, (30/10) / (20/40) = 6; the usual
    # standard error is the root of the sum of 1/count, and clusters of one row each agree with it for large tables.
    x = np.repeat([1.0, 1.0, 0.0, 0.0], [30, 10, 20, 40])
    y = np.repeat([1.0, 0.0, 1.0, 0.0], [30, 10, 20, 40])
    beta, error = logistic(x, y, np.arange(100))
    assert beta == pytest.approx(np.log(6))
    assert error == pytest.approx(np.sqrt(1 / 30 + 1 / 10 + 1 / 20 + 1 / 40), rel=1e-6)
    # The same rows twice in clusters of two: twice the data, no more knowledge.
    twice, same = logistic(np.tile(x, 2), np.tile(y, 2), np.tile(np.arange(100), 2))
    assert (twice, same) == (pytest.approx(beta), pytest.approx(error))


def test_logistic_regression_without_variation_has_no_answer() -> None:
    beta, error = logistic(np.zeros(10), np.ones(10), np.arange(10))
    assert np.isnan(beta)
    assert np.isnan(error)


def test_signals_that_lead_nowhere_change_nothing(tmp_path: Path) -> None:
    """What the odds show comes from what the signals lead to: without, nothing is left."""
    leading = preset("paper").leading
    assert leading is not None
    # Nor a follow of what was just begun, which those give who begin much.
    nothing = ("follow_leads", "preview_leads", "intent_leads", "follow_after")
    idle = leading.model_copy(update=dict.fromkeys(nothing, 0.0))
    write(sized("paper", 20_000, leading=idle.model_dump(), **PLAIN), tmp_path / "idle")
    for signal, odds in odds_after_signals(Tables(tmp_path / "idle")).items():
        error = (np.log1p(odds.high) - np.log1p(odds.low)) / (2 * 1.96)
        assert abs(np.log1p(odds.change)) < 3.3 * error, signal


def test_sizes_and_their_podcasts() -> None:
    config = sized("paper", 300, 40)
    assert (config.n_users, config.n_audiobooks, config.n_podcasts) == (300, 40, 100)
    assert sized("paper") == preset("paper")


def test_the_hash_tells_code_settings_and_nothing_else() -> None:
    assert simulator_hash("paper") == simulator_hash(preset("paper"))
    assert simulator_hash("paper") != simulator_hash(preset("paper", seed=8))
    assert simulator_hash("paper") != simulator_hash("sample")
    assert len(simulator_hash("tiny")) == 64


def small(users: int, **overrides: object) -> SimulatorConfig:
    return sized("paper", users, 120, chunk_users=250, n_artists=50, n_tracks=100, **overrides)


def test_memory_does_not_grow_with_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most bytes held at once by Python, numpy and Arrow, counted: 8 chunks of users need what 2 need."""
    import tracemalloc

    import pyarrow as pa

    def peak(users: int) -> tuple[int, GeneratedSummary]:
        pool = pa.proxy_memory_pool(pa.default_memory_pool())
        before = pa.default_memory_pool()
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            summary = write(small(users), tmp_path / str(users))
            return tracemalloc.get_traced_memory()[1] + pool.max_memory(), summary
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(before)

    peak(250)  # Imports and caches, once.
    few, _ = peak(500)
    many, summary = peak(2_000)
    assert summary.rows["users"] == 2_000
    # Chunks differ in their luck; growth with the users would give 4.
    assert many < 1.5 * few


def test_every_chunk_of_users_is_written_before_the_next_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept of a chunk: when the next one is asked for, no earlier one is alive."""
    import gc
    import weakref

    from audiorec.simulator.world import World

    drawn: list[weakref.ref[object]] = []
    alive: list[int] = []
    people = World.people

    def watched(self: World, chunk: int) -> object:
        gc.collect()
        alive.append(sum(ref() is not None for ref in drawn))
        group = people(self, chunk)
        drawn.append(weakref.ref(group))
        return group

    monkeypatch.setattr(World, "people", watched)
    write(small(1_500), tmp_path / "chunks")
    assert len(drawn) == 6
    # The one before is let go of when the next takes its name.
    assert max(alive) <= 1


def test_catalogues_in_chunks_hold_every_title_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from audiorec.simulator import tables

    write(small(100), tmp_path / "whole")
    monkeypatch.setattr(tables, "CHUNK_TITLES", 50)
    write(small(100), tmp_path / "chunks")
    for table, key in (("audiobooks", "audiobook_id"), ("podcasts", "podcast_id")):
        whole = pq.read_table(tmp_path / "whole" / f"{table}.parquet")
        chunks = pq.read_table(tmp_path / "chunks" / f"{table}.parquet")
        assert pq.ParquetFile(tmp_path / "chunks" / f"{table}.parquet").num_row_groups == -(-len(whole) // 50)
        assert chunks.sort_by(key).equals(whole.sort_by(key))
