"""The oracle tells true probabilities, and nothing of the chain can read what it knows."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiorec.errors import BadData
from audiorec.settings import load_settings
from audiorec.simulator import preset, simulator_hash, sized, write_source_tables
from audiorec.simulator.calibration import Tables
from audiorec.simulator.listening import DAY_SECONDS, FOLLOW, INTENT, PREVIEW, choose
from audiorec.simulator.oracle import Oracle
from audiorec.simulator.truth import truth_of
from audiorec.simulator.world import World
from audiorec.source import TABLES, open_source

CONFIG = sized("paper", 1_500, 300, seed=3)
SPLIT = CONFIG.last_day - timedelta(days=13)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "town"
    write_source_tables(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def oracle(made: Path) -> Oracle:
    return Oracle.load(made)


def everything(oracle: Oracle, horizon: int = 14) -> np.ndarray:
    return oracle.scores(list(oracle.users), list(oracle.titles), SPLIT, horizon)


def test_chances_are_those_of_the_generators_own_choices(oracle: Oracle) -> None:
    """A user's choices, drawn a hundred thousand times, against what the oracle says of them."""
    world = World(CONFIG)
    people = world.people(0)
    day, draws = 50, 100_000
    for row in (0, 7, 11):
        chosen = choose(
            np.random.default_rng(row),
            CONFIG,
            world.audiobooks,
            people.taste["audiobook"],
            people,
            np.full(draws, row),
            np.full(draws, day),
            world.languages.index("en"),
        )
        seen = np.bincount(chosen, minlength=len(world.audiobooks.ids)) / draws
        said = oracle.choices(np.array([row]), day)[0]
        assert said.sum() == pytest.approx(1)
        # Total variation: chance alone gives half the sum of sqrt(2/pi p/n), 0.01 here; the oracle's average over shelves
        # adds a little.
        noise = 0.5 * np.sqrt(2 / np.pi * said / draws).sum()
        assert 0.5 * np.abs(seen - said).sum() < noise + 0.03
        # Among the titles that matter the order is right.
        assert set(np.argsort(-seen)[:5]) <= set(np.argsort(-said)[:8])


def first_streams(made: Path, oracle: Oracle) -> np.ndarray:
    """Day of the first stream [users, titles], 999 for none, in the oracle's order."""
    tables = Tables(made)
    streams = tables.audiobooks.streams
    first = np.full((len(tables.users), len(tables.titles)), 999)
    start = int(np.datetime64(CONFIG.first_day, "D").astype(int))
    np.minimum.at(first, (streams.user, streams.item), streams.at // 86_400_000_000 - start)
    users = np.searchsorted(tables.users, list(oracle.users))
    titles = np.searchsorted(tables.titles, list(oracle.titles))
    return first[users][:, titles]


def test_what_is_expected_happens_as_often_as_it_is_expected(made: Path, oracle: Oracle) -> None:
    split = (SPLIT - CONFIG.first_day).days
    first = first_streams(made, oracle)
    open_pairs = (first >= split) & (oracle.shelf.published_day <= split)[None, :]
    said = everything(oracle)
    for low, high in ((0.003, 0.03), (0.03, 0.15), (0.15, 1.0)):
        pairs = open_pairs & (said >= low) & (said < high)
        happened, expected = int((first[pairs] < 999).sum()), float(said[pairs].sum())
        # Poisson error, and a fifth for popularity that drifts on after the split and titles that come out and draw away.
        assert abs(happened - expected) < 4 * np.sqrt(expected) + 0.2 * expected, (low, high)
        assert expected > 20


def hits(first: np.ndarray, scores: np.ndarray, split: int) -> float:
    """HR@10 on titles that anybody streamed before the split."""
    known = (first < split).any(axis=0)
    relevant = (first >= split) & (first < 999) & known
    users = relevant.any(axis=1)
    barred = (first < split) | ~known
    top = np.argsort(-np.where(barred, -np.inf, scores), axis=1, kind="stable")[:, :10]
    return float(np.take_along_axis(relevant, top, axis=1).any(axis=1)[users].mean())


def test_the_oracle_is_far_above_popularity_and_uses_all_it_knows(made: Path, oracle: Oracle) -> None:
    split = (SPLIT - CONFIG.first_day).days
    first = first_streams(made, oracle)
    own = hits(first, everything(oracle), split)
    popularity = np.broadcast_to((first < split).sum(axis=0), first.shape)
    strangers = everything(oracle)[np.random.default_rng(0).permutation(len(first))]
    assert own > hits(first, popularity, split) + 0.15
    assert own > hits(first, strangers, split) + 0.15


def test_signals_given_before_the_day_count_and_fade(made: Path, oracle: Oracle) -> None:
    user, item, event, at = oracle.signals
    split = (SPLIT - CONFIG.first_day).days
    leading = CONFIG.leading
    assert leading is not None
    shares = {
        FOLLOW: leading.follow_leads,
        PREVIEW: leading.preview_leads,
        INTENT: leading.intent_leads,
    }
    first = first_streams(made, oracle)
    said = oracle.scores(list(oracle.users), list(oracle.titles), SPLIT)
    base = 1 - np.exp(
        -oracle.choices(np.arange(len(oracle.users)), split)
        * oracle._starts(np.arange(len(oracle.users)), split, 14)[:, None]
    )
    once = [
        i
        for i in np.flatnonzero((at < split) & (at > split - 6))
        if first[user[i], item[i]] >= split
        and ((user == user[i]) & (item == item[i]) & (at < split)).sum() == 1
    ]
    assert len(once) > 20
    for i in once:
        age, share = split - at[i], shares[int(event[i])]
        # By Bayes: it leads to a stream in the 14 days with share (F(age + 14) - F(age)), and has not by now with
        # 1 - share F(age), where F(t) = 1 - exp(-t / lag).
        led = share * (np.exp(-age / 3) - np.exp(-(age + 14) / 3)) / (1 - share * (1 - np.exp(-age / 3)))
        expected = 1 - (1 - base[user[i], item[i]]) * (1 - led)
        assert said[user[i], item[i]] == pytest.approx(expected, rel=1e-4)
    assert leading.lag_days == 3
    assert DAY_SECONDS == 86_400


def test_unpublished_titles_have_no_chance_but_by_signals(oracle: Oracle) -> None:
    day = 40
    unpublished = oracle.shelf.published_day > day
    said = oracle.scores(list(oracle.users), list(oracle.titles), CONFIG.first_day + timedelta(days=day))
    assert unpublished.sum() > 20
    assert said[:, unpublished].max() == 0
    assert (said[:, ~unpublished].max(axis=1) > 0).all()


def test_some_users_and_titles_in_any_order(made: Path, oracle: Oracle) -> None:
    users, titles = list(oracle.users)[30:40][::-1], list(oracle.titles)[5:25][::-1]
    some = Oracle.load(made, users).scores(users, titles, SPLIT)
    whole = everything(oracle)[30:40, 5:25][::-1, ::-1]
    assert some == pytest.approx(whole, rel=1e-6)


def test_nothing_after_the_day_changes_the_scores(tmp_path: Path, made: Path, oracle: Oracle) -> None:
    """Signals of the hold-out are taken away and popularity in the weeks after the split is another: scores stay."""
    cut = tmp_path / "town"
    shutil.copytree(made, cut)
    shutil.copytree(truth_of(made), truth_of(cut))
    at_us = (SPLIT - CONFIG.first_day).days * DAY_SECONDS * 1_000_000
    path = truth_of(cut) / "signals.parquet"
    signals = pq.read_table(path)
    before = signals.filter(signals["at_us"].to_numpy() < at_us)
    assert len(before) < len(signals)
    pq.write_table(before, path)
    path = truth_of(cut) / "audiobooks.parquet"
    titles = pq.read_table(path)
    drift = [
        [value if week <= (SPLIT - CONFIG.first_day).days // 7 else 9.0 for week, value in enumerate(weeks)]
        for weeks in titles["drift"].to_pylist()
    ]
    column = titles.schema.get_field_index("drift")
    pq.write_table(
        titles.set_column(column, "drift", pa.array(drift, titles.schema.field("drift").type)), path
    )
    assert (everything(Oracle.load(cut)) == everything(oracle)).all()


def test_wrong_ids_days_and_folders(tmp_path: Path, made: Path, oracle: Oracle) -> None:
    some = list(oracle.users)[:1], list(oracle.titles)
    with pytest.raises(BadData, match="user_id 'nobody' is not of this simulation"):
        oracle.scores(["nobody"], some[1], SPLIT)
    with pytest.raises(BadData, match="audiobook_id 'nothing'"):
        oracle.scores(some[0], ["nothing"], SPLIT)
    with pytest.raises(BadData, match="lies outside of the simulation"):
        oracle.scores(*some, CONFIG.last_day + timedelta(days=1))
    write_source_tables(preset("tiny"), tmp_path / "tiny")
    with pytest.raises(BadData, match="no truth behind the tables"):
        Oracle.load(tmp_path / "tiny")
    shutil.copytree(truth_of(made), truth_of(tmp_path / "tiny"))
    with pytest.raises(BadData, match="is not the truth behind"):
        Oracle.load(tmp_path / "tiny")


def test_the_truth_carries_the_simulators_hash(made: Path, oracle: Oracle) -> None:
    assert oracle.simulator_hash == simulator_hash(CONFIG)
    record = json.loads((truth_of(made) / "truth.json").read_text(encoding="utf-8"))
    assert record["simulator_hash"] == simulator_hash(CONFIG)


def test_the_chain_sees_the_tables_and_cannot_read_the_truth(made: Path, tmp_path: Path) -> None:
    names = {path.stem for path in made.iterdir()}
    assert names == {table.name for table in TABLES} | {"generated"}
    truth = truth_of(made)
    assert truth.parent == made.parent
    settings = load_settings(source={"uri": str(made)}, store={"scratch": str(tmp_path / "scratch")})
    source = open_source(settings)
    columns = {
        row[0]
        for table in TABLES
        for row in source.connection.execute(f"DESCRIBE source.{table.name}").fetchall()
    }
    assert not columns & {"taste", "topics", "curiosity", "log_popularity", "drift"}
    for name in ("users", "audiobooks", "signals"):
        with pytest.raises(duckdb.PermissionException):
            source.connection.execute(f"SELECT * FROM read_parquet('{truth}/{name}.parquet')")


def test_the_truth_goes_with_its_tables(tmp_path: Path) -> None:
    folder, small = tmp_path / "tables", sized("paper", 50, 40)
    assert not write_source_tables(small, folder).reused
    assert write_source_tables(small, folder).reused
    # Lost or changed: all is made again.
    (truth_of(folder) / "signals.parquet").unlink()
    assert not write_source_tables(small, folder).reused
    (truth_of(folder) / "users.parquet").write_bytes(b"edited")
    assert not write_source_tables(small, folder).reused
    assert write_source_tables(small, folder).reused
    Oracle.load(folder)
    # Tables without a truth leave none behind.
    write_source_tables(preset("tiny"), folder)
    assert not truth_of(folder).exists()


def test_what_others_put_in_the_truths_place_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    truth_of(folder).mkdir()
    (truth_of(folder) / "diary.txt").write_text("mine")
    with pytest.raises(BadData, match="is left alone; give another folder"):
        write_source_tables(sized("paper", 50, 40), folder)
    write_source_tables(preset("tiny"), folder)  # Has no truth and no need of the place.
    assert (truth_of(folder) / "diary.txt").read_text() == "mine"


def test_one_user_and_two_titles(tmp_path: Path) -> None:
    config = sized("paper", 1, 2, audiobook_share=0.75)
    write_source_tables(config, tmp_path / "one")
    oracle = Oracle.load(tmp_path / "one")
    said = oracle.scores(list(oracle.users), list(oracle.titles), config.last_day)
    assert said.shape == (1, 2)
    assert np.isfinite(said).all()
