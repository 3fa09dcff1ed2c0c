"""Recommendations: what may be recommended, in which order, and that every reason is true."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from audiorec.catalogue import load_extract
from audiorec.champion import describe, write_pointer
from audiorec.demo import recommendation_table, show_metrics, show_recommendations
from audiorec.errors import BadData, BadSettings
from audiorec.recommend import MIN_EDGE_USERS, Evidence, Recommender
from audiorec.store import Store

if TYPE_CHECKING:
    from released import Releases

MODEL_NAME = "audiobook_recommender"

WARM, NO_AUDIOBOOK, NOTHING = (
    "a warm user",
    "a user who knows only music and podcasts",
    "a user with nothing but a country and an age",
)


@pytest.fixture(scope="module")
def world(releases: Releases) -> Any:
    """What the first date's version was made of."""
    return load_extract(releases.settings(), releases.inputs(releases.dates[0]))


@pytest.fixture
def recommender(releases: Releases) -> Recommender:
    """One a test, as some tests change what it knows."""
    return Recommender(releases.store, releases.bundle(releases.dates[0]), "1")


def scores_of(recommender: Recommender, row: int) -> np.ndarray:
    from audiorec.features import UserFeatures

    items = np.load(recommender._open("refresh", "item_vectors.npy"))
    country = recommender._users["country_idx"].to_numpy(np.int64)[[row]]
    vector = recommender._towers.user_vectors(UserFeatures(country, np.array(recommender._features[[row]])))
    return (vector @ items.T)[0]


# --- which titles ----------------------------------------------------------------------------------------


def test_the_best_of_what_is_left_for_everybody(recommender: Recommender, world: Any):
    """Never what the user streamed; the highest scores of all the rest, in order: by brute force."""
    streamed: dict[int, set[int]] = {}
    for user, title in world.first_streams[["user_idx", "audiobook_idx"]].itertuples(index=False):
        streamed.setdefault(user, set()).add(title)
    ids = world.audiobooks["audiobook_id"].tolist()
    some = [*sorted(streamed, key=lambda user: -len(streamed[user]))[:40], *range(0, len(world.users), 25)]
    for row in some:
        found = recommender.recommend(world.users["user_id"].iloc[row], 12)
        scores = scores_of(recommender, row)
        left = [i for i in np.argsort(-scores, kind="stable") if i not in streamed.get(row, set())]
        assert len(found) == 12
        np.testing.assert_allclose([one.score for one in found], scores[left[:12]], rtol=1e-5, atol=1e-6)
        own = [ids.index(one.audiobook_id) for one in found]
        assert len(set(own)) == 12
        assert not set(own) & streamed.get(row, set())
        np.testing.assert_allclose(scores[own], scores[left[:12]], rtol=1e-5, atol=1e-6)
    assert max(map(len, streamed.values())) >= 10  # somebody is barred from much


def test_never_a_title_that_is_not_out(recommender: Recommender, world: Any):
    user = world.users["user_id"].iloc[0]
    before = [one.audiobook_id for one in recommender.recommend(user, 100)]
    out = np.array(recommender._available)
    unavailable = [recommender._books["audiobook_id"].tolist().index(one) for one in before[:20]]
    out[unavailable] = False
    recommender._available = out
    after = [one.audiobook_id for one in recommender.recommend(user, 10)]
    assert after == before[20:30]


def test_k_titles_or_all_there_are(recommender: Recommender, world: Any):
    user, known = (
        world.users["user_id"].iloc[3],
        set(world.first_streams.query("user_idx == 3")["audiobook_idx"]),
    )
    assert [len(recommender.recommend(user, k)) for k in (1, 7)] == [1, 7]
    assert recommender.recommend(user, 7)[:3] == recommender.recommend(user, 3)
    everything = recommender.recommend(user, 1_000)
    assert len(everything) == int(recommender._available.sum()) - len(known)


def test_an_unknown_user_is_named(recommender: Recommender, world: Any):
    said = rf"user 'nobody' is not among the {len(world.users)} users known on 2026-11-20"
    with pytest.raises(BadSettings, match=said):
        recommender.recommend("nobody")
    with pytest.raises(BadSettings, match=said):
        recommender.about("nobody")


def test_a_title_without_a_name_goes_by_its_id(recommender: Recommender, world: Any):
    user = world.users["user_id"].iloc[0]
    recommender._books = recommender._books.assign(title=None, author=np.nan)
    recommender._podcasts = recommender._podcasts.assign(title=np.nan)
    found = recommender.recommend(user, 5)
    assert [one.title for one in found] == [one.audiobook_id for one in found]
    assert {one.author for one in found} == {None}
    listener = world.users["user_id"].iloc[int(recommender._history.index[0])]
    ids = {*recommender._books["audiobook_id"], *recommender._podcasts["podcast_id"]}
    assert {one.title for one in recommender.evidence(recommender.row(listener))} <= ids
    assert recommendation_table("For somebody", found).row_count == 5


# --- why -------------------------------------------------------------------------------------------------


def listeners(releases: Releases, world: Any, kind: str) -> pd.DataFrame:
    """Who streamed which title in the release window, from the partitions."""
    as_of = releases.dates[0]
    inputs = releases.inputs(as_of)
    first = date.fromordinal(as_of.toordinal() - world.settings.time.window_days + 1)
    return duckdb.execute(
        "SELECT DISTINCT user_id, item_id FROM read_parquet($paths) WHERE item_type = $kind AND event = 'stream'",
        {"paths": [str(p) for p in inputs.interactions(first, as_of)], "kind": kind},
    ).df()


def test_shared_listeners_are_counted_people_and_never_few(
    releases: Releases, recommender: Recommender, world: Any
):
    """Every pair of titles: the source's own count where five or more share an edge, else nothing."""
    audience = {kind: listeners(releases, world, kind) for kind in ("audiobook", "podcast")}
    people = {
        kind: {title: set(users) for title, users in table.groupby("item_id")["user_id"]}
        for kind, table in audience.items()
    }
    books = world.audiobooks["audiobook_id"].tolist()
    shown, hidden = 0, 0
    for kind, ids in (("audiobook", books), ("podcast", world.podcasts["podcast_id"].tolist())):
        for idx, book in enumerate(books):
            for other, title in enumerate(ids):
                number = recommender.shared_listeners(idx, Evidence(kind, other, "", "stream"))
                both = len(people["audiobook"].get(book, set()) & people[kind].get(title, set()))
                assert number in (0, both)
                assert number == 0 or number >= MIN_EDGE_USERS
                shown += number > 0
                hidden += number == 0 and 0 < both < MIN_EDGE_USERS
    assert shown > 200
    assert hidden > 200


REASONS = {
    "edge": r"You (listened to|follow|previewed|looked at buying) “(.+)” \((audiobook|podcast)\); (\d+) people listened to both\.",
    "alike": r"You (listened to|follow|previewed|looked at buying) “(.+)” \((audiobook|podcast)\); it attracts the same listeners\.",
    "country": r"Popular in (\w+): number (\d+) of the last 30 days there\.",
    "popular": r"Popular now: (\d+) plays in the last 30 days\.",
    "new": r"New: published on (\d{4}-\d{2}-\d{2})\.",
    "unknown": r"From the catalogue: little is known of this title yet\.",
}
DID = {
    "listened to": "stream",
    "follow": "follow",
    "previewed": "preview",
    "looked at buying": "intent_to_pay",
}


def kind_of(reason: str) -> tuple[str, tuple[str, ...]]:
    [(kind, found)] = [
        (kind, found) for kind, text in REASONS.items() if (found := re.fullmatch(text, reason)) is not None
    ]
    return kind, found.groups()


def test_every_reason_names_something_true(recommender: Recommender, world: Any):
    """Evidence is the user's own; what has none is popular or new, in figures that the release holds."""
    titles = {
        kind: table["title"].fillna(table[f"{kind}_id"]).tolist()
        for kind, table in (("audiobook", world.audiobooks), ("podcast", world.podcasts))
    }
    history: dict[int, set[tuple[str, str, str]]] = {}
    for user, row in recommender._history.iterrows():
        did = (row["signal"], titles[row["item_type"]][row["item_idx"]], row["item_type"])
        history.setdefault(int(user), set()).add(did)
    seen: Counter[str] = Counter()
    plays = recommender._popularity.set_index("audiobook_id")["streams_30_days"]
    for row in range(0, len(world.users), 9):
        for one in recommender.recommend(world.users["user_id"].iloc[row], 60):
            kind, said = kind_of(one.reason)
            seen[kind] += 1
            if kind in ("edge", "alike"):
                assert (DID[said[0]], said[1], said[2]) in history[row]
            if kind == "edge":
                assert int(said[3]) >= MIN_EDGE_USERS
            if kind == "country":
                assert said[0] == world.users["country"].iloc[row]
            if kind == "popular":
                assert int(said[0]) == plays[one.audiobook_id] >= MIN_EDGE_USERS
    assert seen["edge"] > 500
    assert min(seen["alike"], seen["country"], seen["popular"]) > 10


def reason(recommender: Recommender, idx: int, evidence: list[Evidence], country: str | None = None) -> str:
    return recommender.reason(idx, evidence, country)


def test_the_title_shared_by_most_people_is_the_reason(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
):
    many, few = Evidence("podcast", 1, "Many", "follow"), Evidence("audiobook", 2, "Few", "stream")
    shared = {"Many": 9, "Few": 5}
    monkeypatch.setattr(recommender, "shared_listeners", lambda _, one: shared[one.title])
    assert reason(recommender, 0, [few, many]) == "You follow “Many” (podcast); 9 people listened to both."
    shared["Few"] = 10
    assert (
        reason(recommender, 0, [few, many])
        == "You listened to “Few” (audiobook); 10 people listened to both."
    )


def test_without_a_shared_listener_the_nearest_title_is_the_reason(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
):
    """Cosines of title 0 to the evidence: 3/5 and 4/5; under 1/2 nothing is called alike."""
    monkeypatch.setattr(recommender, "shared_listeners", lambda *_: 0)
    recommender._hgnn = {
        "audiobook": np.array([[1.0, 0.0], [0.6, 0.8]]),
        "podcast": np.array([[0.8, 0.6], [0.49, 0.87]]),
    }
    book, near = Evidence("audiobook", 1, "Book", "preview"), Evidence("podcast", 0, "Near", "intent_to_pay")
    assert reason(recommender, 0, [book, near]) == (
        "You looked at buying “Near” (podcast); it attracts the same listeners."
    )
    assert (
        reason(recommender, 0, [book]) == "You previewed “Book” (audiobook); it attracts the same listeners."
    )
    assert "You" not in reason(recommender, 0, [Evidence("podcast", 1, "Far", "stream")])


def test_popularity_where_there_is_no_evidence(recommender: Recommender):
    """First by country, of five people or more; then by plays, of five or more; then by date; and then it says so."""
    recommender._by_country = pd.DataFrame(
        {"country": ["DE", "DE", "DE", "SE"], "audiobook_idx": [4, 2, 0, 0], "listeners": [9, 7, 4, 30]}
    )
    books = len(recommender._books)
    recommender._popularity = pd.DataFrame({"streams_30_days": [6] * books, "listeners": [5] * books})
    assert reason(recommender, 2, [], "DE") == "Popular in DE: number 2 of the last 30 days there."
    assert reason(recommender, 0, [], "SE") == "Popular in SE: number 1 of the last 30 days there."
    # Four listeners in DE are too few to be spoken of; elsewhere and without a country all plays count.
    for country in ("DE", "FR", None):
        assert reason(recommender, 0, [], country) == "Popular now: 6 plays in the last 30 days."
    # Six plays of four people are not shown, and four plays are not popular, whoever came before them.
    published = pd.Series([pd.Timestamp(2026, 8, 22)] * books)
    recommender._books = recommender._books.assign(published_on=published)
    for plays, people in ((6, 4), (4, 9), (0, 0)):
        recommender._popularity = pd.DataFrame(
            {"streams_30_days": [plays] * books, "listeners": [people] * books}
        )
        assert reason(recommender, 0, [], "DE") == "New: published on 2026-08-22."  # 90 days before
    for day in (pd.Timestamp(2026, 8, 21), pd.NaT):
        recommender._books = recommender._books.assign(published_on=pd.Series([day] * books))
        assert reason(recommender, 0, [], None) == "From the catalogue: little is known of this title yet."


# --- for whom --------------------------------------------------------------------------------------------


def test_example_users_are_of_the_three_kinds(recommender: Recommender, world: Any):
    """By the extract's own facts: an audiobook signal; music and podcasts without one; no event at all."""
    examples = recommender.example_users()
    assert list(examples) == [WARM, NO_AUDIOBOOK, NOTHING]
    row = {kind: recommender.row(str(user_id)) for kind, user_id in examples.items()}
    never = 10**8
    assert world.first_signal_day[row[WARM]] < never
    assert world.first_signal_day[row[NO_AUDIOBOOK]] > never
    settings = world.settings.time
    start = date.fromordinal(world.as_of.toordinal() - settings.window_days + 1)
    for kind in ("music", "podcast"):
        events = world.events(kind, start, world.as_of)
        assert (events["user_idx"] == row[NO_AUDIOBOOK]).any()
    assert world.first_seen_day[row[NOTHING]] > never
    user = world.users.iloc[row[NOTHING]]
    assert isinstance(user["country"], str)
    assert pd.notna(user["birth_year"])


def test_example_users_are_judged_by_all_of_history(recommender: Recommender, world: Any):
    """Last heard of before the window began: without an event in it, but not unknown."""
    busiest = recommender.row(str(recommender.example_users()[NO_AUDIOBOOK]))
    first = recommender.row(str(recommender.example_users()[NOTHING]))
    long_ago = np.arange(len(world.users)) == first
    recommender._users["seen"] |= long_ago
    recommender._users["warm"] |= np.arange(len(world.users)) == busiest
    rows = [recommender.row(str(user_id)) for user_id in recommender.example_users().values()]
    assert rows[1] != busiest
    assert rows[2] != first
    quiet = world.users.index[world.first_seen_day > 10**8]
    assert rows[2] in quiet


def test_a_listener_to_podcasts_alone_is_no_example_of_music(recommender: Recommender):
    row = recommender.row(str(recommender.example_users()[NO_AUDIOBOOK]))
    spec, flag = recommender._towers.spec, 2 + recommender._towers.spec.config.music_dimensions
    recommender._features = np.array(recommender._features)
    recommender._features[row, flag] = (0.0 - spec.user_mean[flag]) * spec.user_scale[flag]
    other = recommender.example_users()[NO_AUDIOBOOK]
    assert other is not None
    assert recommender.row(other) != row


def test_example_users_may_be_missing(recommender: Recommender):
    recommender._history = recommender._history[recommender._history["item_type"] == "audiobook"]
    recommender._users = recommender._users.assign(country=None)
    found = recommender.example_users()
    assert found[WARM] is not None
    assert (found[NO_AUDIOBOOK], found[NOTHING]) == (None, None)


def test_about_a_user(recommender: Recommender, world: Any):
    row = recommender.row(str(recommender.example_users()[WARM]))
    own = recommender._history.loc[[row], "item_type"].value_counts()
    user = world.users.iloc[row]
    about = recommender.about(user["user_id"])
    assert about.startswith(f"{user['country']}, ")
    assert f"{own.get('audiobook', 0)} audiobook(s), {own.get('podcast', 0)} podcast(s) lately" in about
    recommender._users = recommender._users.assign(country=np.nan, birth_year=np.nan)
    assert recommender.about(user["user_id"]).startswith("country unknown, age unknown, ")


# --- in the terminal -------------------------------------------------------------------------------------


def printed(show: Any, *arguments: Any) -> str:
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    show(Console(file=text, width=160), *arguments)
    return text.getvalue()


def test_the_demo_shows_ten_titles_with_reasons_for_each_kind(recommender: Recommender):
    text = printed(show_recommendations, recommender)
    for kind, user_id in recommender.example_users().items():
        assert f"For {kind}: {user_id} (" in text
        for one in recommender.recommend(str(user_id), 10):
            assert one.title[:30] in text
    assert len(re.findall(r"^│\s+10 │", text, re.M)) == 3


def test_the_demo_fails_without_such_a_user_or_with_too_few_titles(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recommender, "example_users", lambda: {WARM: None})
    with pytest.raises(BadData, match="the release of 2026-11-20 has no warm user; use a larger sample"):
        printed(show_recommendations, recommender)
    someone = recommender._users["user_id"].iloc[0]
    monkeypatch.setattr(recommender, "example_users", lambda: {WARM: someone})
    recommender._available = np.arange(len(recommender._books)) < 4
    with pytest.raises(BadData, match=rf"a warm user \({someone}\) got \d titles with reasons, expected 10"):
        printed(show_recommendations, recommender)


def test_figures_beside_those_of_popularity(releases: Releases, tmp_path: Path):
    settings, as_of = releases.copy(tmp_path), releases.dates[0]
    store, inputs = Store(settings.store.uri, settings.store.scratch), releases.inputs(as_of)
    with pytest.raises(BadData, match=r"no version of 2026-11-20 is champion"):
        printed(show_metrics, settings, as_of)
    write_pointer(store, MODEL_NAME, "1", describe(as_of, dict(inputs)))
    text = printed(show_metrics, settings, as_of)
    users = inputs["evaluate"].facts["counts"]
    assert f"Hold-out of 2026-11-20: {users['warm'] + users['cold']} users" in text
    for model in ("2T-HGNN", "2T", "popularity, whole window", "popularity, recent"):
        hit_rate = inputs["evaluate"].facts["hit_rate"][f"full.{model}.all"]
        assert re.search(rf"│ {model}\s+│ {hit_rate:.3f} \[", text)
    with pytest.raises(
        BadData, match=r"no version of 2026-11-21 is champion; see the verdict of the task `promote`"
    ):
        printed(show_metrics, settings, releases.dates[1])


def test_figures_at_another_k(releases: Releases, tmp_path: Path):
    from audiorec.runner import run_task

    as_of = releases.dates[0]
    settings = releases.copy(tmp_path, evaluation={"hit_k": 5, "depth": 20})
    run_task("evaluate", settings, as_of)
    inputs = releases.inputs(as_of, evaluate=releases.result(settings, as_of, "evaluate"))
    write_pointer(
        Store(settings.store.uri, settings.store.scratch), MODEL_NAME, "1", describe(as_of, dict(inputs))
    )
    text = printed(show_metrics, settings, as_of)
    assert "HR@5" in text
    assert "coverage@20" in text
