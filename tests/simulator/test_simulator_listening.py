"""What the generator means to plant is really in its tables, and its choice follows the stated rule."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import audiorec.simulator
from audiorec.simulator import SimulatorConfig, preset
from audiorec.simulator.listening import choose
from audiorec.simulator.vocabulary import LANGUAGES, PATTERNS, TONE_SENTENCES, TONES, TOPICS, WORDS
from audiorec.simulator.world import T, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Generated


def small_world(**overrides: object) -> World:
    plain = {"drift_sigma": 0.0, "novelty_boost": 0.0, "n_users": 1, "languages": ("en",), "n_audiobooks": 3}
    return World(preset("tiny", **{**plain, **overrides}))


def plant(world: World, weights: list[float]) -> None:
    """Three audiobooks alike but for their weight, out for long; one user who likes no tone."""
    shelf = world.audiobooks
    shelf.topics[:] = shelf.topics[0]
    shelf.log_popularity[:] = np.log(np.array(weights) + 1e-300)
    shelf.published_day[:] = -100


def shares(world: World, tone: float = 0.0, day: int = 3, requests: int = 30_000) -> np.ndarray:
    people = world.people(0)
    people.tone[:] = 0.0
    people.tone[:, 1] = tone
    user = np.zeros(requests, np.int64)
    chosen = choose(
        np.random.default_rng(1),
        world.config,
        world.audiobooks,
        people.taste["audiobook"],
        people,
        user,
        np.full(len(user), day),
        None,
    )
    counts = np.bincount(chosen + 1, minlength=4)  # position 0: nothing to choose
    return counts / counts.sum()


def test_alike_titles_are_chosen_by_popularity() -> None:
    world = small_world(affinity_weight=0, tone_weight=0, home_weight=0)
    plant(world, [3, 1, 0])
    # 3 : 1 : 0, so 3/4, 1/4 and never; one standard error is sqrt(3/4 * 1/4 / 30000) = 0.0025.
    assert shares(world) == pytest.approx([0, 3 / 4, 1 / 4, 0], abs=0.012)
    assert shares(world)[3] == 0


def test_taste_multiplies_popularity_as_a_softmax() -> None:
    world = small_world(affinity_weight=0, tone_weight=1, home_weight=0, candidates=400)
    plant(world, [1, 1, 1])
    world.audiobooks.tone[:] = [1, 0, 0]
    # Utility ln 2 for the first: exp(ln 2) = 2 against 1 and 1, so 2/4, 1/4, 1/4 on a large shelf.
    assert shares(world, tone=np.log(2), requests=8_000) == pytest.approx([0, 2 / 4, 1 / 4, 1 / 4], abs=0.025)


def test_nothing_is_chosen_before_it_is_published() -> None:
    world = small_world()
    plant(world, [1, 1, 1])
    world.audiobooks.published_day[:] = [5, 6, 7]
    assert shares(world, day=4).tolist() == [1, 0, 0, 0]
    assert shares(world, day=5).tolist() == [0, 1, 0, 0]
    assert (shares(world, day=7)[1:] > 0).all()


def test_novelty_decays() -> None:
    world = small_world(novelty_boost=6.0, novelty_days=10.0)
    plant(world, [1, 1, 1])
    world.audiobooks.published_day[:] = [0, -10, -100_000]
    # 1 + 6 e^0 = 7; 1 + 6 e^-1; 1 + 6 e^-10000 = 1.
    assert world.audiobooks.weights(0) == pytest.approx([7, 1 + 6 / np.e, 1])


def test_audiobooks_are_sparse_and_growing(town: Generated) -> None:
    con = town.connect()
    streams = {
        kind: con.execute(f"SELECT count(*) FROM {kind}_events WHERE event = 'stream'").fetchone()[0]
        for kind in ("music", "podcast", "audiobook")
    }
    assert streams["music"] > 2 * streams["podcast"]
    assert streams["podcast"] > 3 * streams["audiobook"]
    first, last = (
        con.execute(
            f"""SELECT count(*) FROM audiobook_events WHERE event = 'stream'
            AND occurred_at::DATE BETWEEN DATE '{low}' AND DATE '{high}'"""
        ).fetchone()[0]
        for low, high in (("2026-07-22", "2026-08-18"), ("2026-10-27", "2026-11-23"))
    )
    assert last > 3 * first
    assert town.summary.starters_last_14_days > town.config.n_users * 0.2
    assert town.summary.first_ever_last_14_days > 50


def test_counts_in_the_summary_agree_with_the_rows(town: Generated) -> None:
    con = town.connect()
    con.execute(
        """CREATE TEMP TABLE firsts AS SELECT user_id, audiobook_id, min(occurred_at)::DATE AS on_day
        FROM audiobook_events WHERE event = 'stream' GROUP BY ALL"""
    )
    recent = "SELECT count(DISTINCT user_id) FROM firsts WHERE on_day >= DATE '2026-11-10'"
    assert con.execute(recent).fetchone() == (town.summary.starters_last_14_days,)
    ever = """SELECT count(*) FROM (SELECT min(on_day) AS d FROM firsts GROUP BY user_id)
        WHERE d >= DATE '2026-11-10'"""
    assert con.execute(ever).fetchone() == (town.summary.first_ever_last_14_days,)
    listeners = "SELECT count(DISTINCT user_id) FROM firsts"
    assert con.execute(listeners).fetchone() == (town.summary.audiobook_listeners,)


def test_popularity_has_a_long_tail(town: Generated) -> None:
    con = town.connect()
    hours = np.array(
        con.execute(
            """SELECT coalesce(sum(seconds_played), 0) FROM audiobooks
            LEFT JOIN audiobook_events USING (audiobook_id) GROUP BY audiobook_id ORDER BY 1 DESC"""
        ).fetchall(),
        dtype=float,
    ).ravel()
    assert hours[: len(hours) // 5].sum() / hours.sum() > 0.55
    assert (hours == 0).sum() >= 5


def test_new_titles_appear_and_some_are_never_touched(town: Generated) -> None:
    con = town.connect()
    early = """SELECT count(*) FROM audiobook_events JOIN audiobooks USING (audiobook_id)
        WHERE occurred_at::DATE < published_on"""
    assert con.execute(early).fetchone() == (0,)
    untouched = """SELECT count(*) FROM audiobooks WHERE published_on > DATE '2026-11-13'
        AND audiobook_id NOT IN (SELECT audiobook_id FROM audiobook_events)"""
    assert con.execute(untouched).fetchone()[0] >= 6  # 2% of 300 titles are kept untouched
    in_period = "SELECT avg((published_on >= DATE '2026-07-22')::INT) FROM audiobooks"
    # 45% drawn as new; of the 6 untouched titles (2%) those that were not among them come on top.
    assert 135 / 300 <= con.execute(in_period).fetchone()[0] <= 141 / 300


def test_every_kind_of_cold_user_exists(town: Generated) -> None:
    con = town.connect()
    kinds = dict(
        con.execute(
            """WITH had AS (
                SELECT user_id,
                    user_id IN (SELECT user_id FROM music_events) AS music,
                    user_id IN (SELECT user_id FROM podcast_events) AS podcasts,
                    user_id IN (SELECT user_id FROM audiobook_events WHERE event = 'stream') AS audiobooks,
                    user_id IN (SELECT user_id FROM audiobook_events) AS audiobook_signal
                FROM users)
            SELECT CASE WHEN audiobooks THEN 'audiobooks' WHEN audiobook_signal THEN 'signal only'
                WHEN podcasts THEN 'podcasts' WHEN music THEN 'music only' ELSE 'nothing' END, count(*)
            FROM had GROUP BY 1"""
        ).fetchall()
    )
    assert kinds["nothing"] >= 30
    assert kinds["music only"] >= 150
    assert kinds["podcasts"] >= 250
    assert kinds["signal only"] >= 30
    assert kinds["audiobooks"] >= 400
    unknown = "SELECT avg((birth_year IS NULL)::INT), avg((country IS NULL)::INT) FROM users"
    years, countries = con.execute(unknown).fetchone()
    assert years == pytest.approx(0.12, abs=0.03)
    assert countries == pytest.approx(0.03, abs=0.02)


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        ("audiobook", "follow"),
        ("audiobook", "preview"),
        ("audiobook", "intent_to_pay"),
        ("podcast", "follow"),
    ],
)
def test_weak_signals_foretell_streams(town: Generated, kind: str, event: str) -> None:
    """The title signalled is streamed later far more often than an equally popular one by chance."""
    con = town.connect()
    item = f"{kind}_id"
    signalled, later = con.execute(
        f"""WITH firsts AS (SELECT user_id, {item}, min(occurred_at) AS at FROM {kind}_events
            WHERE event = 'stream' GROUP BY ALL),
        signals AS (SELECT user_id, {item}, min(occurred_at) AS at FROM {kind}_events
            WHERE event = '{event}' GROUP BY ALL)
        SELECT count(*), count(*) FILTER (WHERE firsts.at > signals.at)
        FROM signals LEFT JOIN firsts USING (user_id, {item})"""
    ).fetchone()
    # By chance: the same titles, each with its share of listeners among the users who stream anything.
    chance = con.execute(
        f"""WITH streams AS (SELECT DISTINCT user_id, {item} FROM {kind}_events WHERE event = 'stream'),
        share AS (SELECT {item}, count(*) / (SELECT count(DISTINCT user_id) FROM streams) AS p
            FROM streams GROUP BY ALL),
        signals AS (SELECT DISTINCT user_id, {item} FROM {kind}_events WHERE event = '{event}')
        SELECT avg(coalesce(p, 0)) FROM signals LEFT JOIN share USING ({item})"""
    ).fetchone()[0]
    assert signalled > 100
    assert later / signalled > 2.5 * chance
    assert later < signalled  # and without a stream they happen too


def test_users_taste_is_shared_by_the_domains(town: Generated) -> None:
    """Topics of a user's podcasts and audiobooks, read off the genres, agree more than strangers' do."""
    con = town.connect()
    codes = {code: i for i, topic in enumerate(TOPICS) for code in topic.bisac}
    categories = {topic.category: i for i, topic in enumerate(TOPICS)}
    genres = {topic.music: i for i, topic in enumerate(TOPICS)}
    profiles = {}
    for kind, sql, number in (
        (
            "audiobook",
            "SELECT user_id, genre FROM audiobook_events JOIN audiobooks USING (audiobook_id)",
            codes,
        ),
        (
            "podcast",
            "SELECT user_id, category FROM podcast_events JOIN podcasts USING (podcast_id)",
            categories,
        ),
        ("music", "SELECT user_id, genre FROM music_events JOIN tracks USING (track_id)", genres),
    ):
        profile: dict[str, np.ndarray] = {}
        for user, genre in con.execute(sql + " WHERE event = 'stream'").fetchall():
            profile.setdefault(user, np.zeros(len(TOPICS)))[number[genre]] += 1
        profiles[kind] = profile
    rng = np.random.default_rng(0)
    for other, margin in (("podcast", 0.15), ("music", 0.08)):
        users = sorted(profiles["audiobook"].keys() & profiles[other].keys())
        assert len(users) > 300
        left, right = (np.array([profiles[kind][user] for user in users]) for kind in ("audiobook", other))
        # Cosine of what is above the mean profile, so that common favourites do not count as agreement.
        left, right = (x / x.sum(axis=1, keepdims=True) for x in (left, right))
        left, right = (x - x.mean(axis=0) for x in (left, right))
        left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
        own = (left * right).sum(axis=1)
        strangers = (left * right[rng.permutation(len(users))]).sum(axis=1)
        assert own.mean() > strangers.mean() + margin, other


def test_choices_are_in_the_users_language_or_english() -> None:
    world = World(preset("sample", n_users=500))
    people = world.people(0)
    german, english = world.languages.index("de"), world.languages.index("en")
    user = np.repeat(np.flatnonzero(people.language == german), 200)
    chosen = choose(
        np.random.default_rng(0),
        world.config,
        world.audiobooks,
        people.taste["audiobook"],
        people,
        user,
        np.full(len(user), 100),
        english,
    )
    share = np.bincount(world.audiobooks.language[chosen], minlength=len(world.languages)) / len(chosen)
    assert share[german] == pytest.approx(0.85, abs=0.02)  # foreign_language_share is 0.15
    assert share[english] == pytest.approx(0.15, abs=0.02)


def test_listeners_hear_no_third_language(town: Generated) -> None:
    """In the tables the share of the own language is lower: a title taken up twice counts once."""
    con = town.connect()
    heard = dict(
        con.execute(
            """SELECT language, count(*) FROM audiobook_events JOIN users USING (user_id)
            JOIN audiobooks USING (audiobook_id) WHERE country = 'DE' GROUP BY 1"""
        ).fetchall()
    )
    assert heard.keys() == {"de", "en"}
    assert heard["de"] > heard["en"]


def test_texts_tell_topic_and_tone_in_the_items_language() -> None:
    world = World(preset("tiny"))
    shelf = world.audiobooks
    texts = world.texts(shelf)
    for i in range(len(shelf.ids)):
        language = world.languages[shelf.language[i]]
        words = WORDS[TOPICS[shelf.main[i]].name, language]
        assert words.sentence in texts.description[i]
        assert TONE_SENTENCES[language][shelf.tone[i]] in texts.description[i]
        assert not set("{}") & set(texts.title[i] + texts.description[i] + texts.creator[i])
        assert texts.title[i][0] == texts.title[i][0].upper()
        assert texts.creator[i].count(" ") >= 1
    assert len({world.languages[i] for i in shelf.language}) >= 5
    assert len(set(zip(texts.title, shelf.language.tolist(), strict=True))) == len(texts.title)


def test_vocabulary_is_complete() -> None:
    assert len(TOPICS) == len({topic.category for topic in TOPICS}) == len({topic.music for topic in TOPICS})
    assert len({code for topic in TOPICS for code in topic.bisac}) == 3 * len(TOPICS)
    for language in LANGUAGES:
        assert len(TONE_SENTENCES[language]) == len(TONES) == T
        assert language in PATTERNS
        for topic in TOPICS:
            words = WORDS[topic.name, language]
            assert len(set(words.nouns)) == 6
            assert words.label
            assert words.sentence.endswith((".", "?"))


def test_one_user_and_one_language_are_enough(
    tmp_path: Path, generate: Callable[[SimulatorConfig, Path], Generated]
) -> None:
    config = SimulatorConfig(
        n_users=1, n_audiobooks=2, n_podcasts=2, n_artists=2, n_tracks=2, days=20, languages=("sv",)
    )
    made = generate(config, tmp_path / "one")
    con = made.connect()
    assert con.execute("SELECT count(DISTINCT audiobook_id) FROM audiobooks").fetchone() == (2,)
    assert con.execute("SELECT count(DISTINCT user_id) FROM users").fetchone() == (1,)
    assert {row[0].lower() for row in con.execute("SELECT language FROM podcasts").fetchall()} == {"sv"}


def test_the_generator_knows_nothing_of_the_model() -> None:
    """It imports neither the recommender nor anything that could hold a graph or an embedding."""
    allowed = {"numpy", "pyarrow", "pydantic", "filelock"}
    for path in Path(audiorec.simulator.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                ours = name == "audiorec.errors" or name.startswith("audiorec.simulator")
                assert ours or top in allowed or top in sys.stdlib_module_names, (
                    path.name,
                    name,
                )
