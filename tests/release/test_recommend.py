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
from audiorec.demo import show_metrics, show_recommendations
from audiorec.embeddings import embed_cut
from audiorec.errors import BadData, BadSettings
from audiorec.profiles import Profile, Touched
from audiorec.reasons import MIN_EDGE_USERS, Titles, _country_places, _names
from audiorec.recommend import Asked, NewTitle, Recommender, Touch, UnknownTitle
from audiorec.search import ExactSearch
from audiorec.store import Store
from models.edges import LINK_TYPES, graph_from_links

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
    """Of all titles for a user of the release, by the stored features alone."""
    from audiorec.features import UserFeatures

    users = recommender.profiles.users
    country = users["country_idx"].to_numpy(np.int64)[[row]]
    dense = np.array(recommender.profiles._dense[[row]])
    return (recommender.towers.user_vectors(UserFeatures(country, dense)) @ recommender.item_vectors.T)[0]


# --- which titles ----------------------------------------------------------------------------------------


def test_the_best_of_what_is_left_for_everybody(recommender: Recommender, world: Any):
    """Never what the user streamed; the highest scores of all the rest, in order: by brute force."""
    streamed: dict[int, set[int]] = {}
    for user, title in world.first_streams[["user_idx", "audiobook_idx"]].itertuples(index=False):
        streamed.setdefault(user, set()).add(title)
    ids = world.audiobooks["audiobook_id"].tolist()
    some = [*sorted(streamed, key=lambda user: -len(streamed[user]))[:40], *range(0, len(world.users), 25)]
    judged = 0
    for row in some:
        answer = recommender.answer(Asked(user_id=world.users["user_id"].iloc[row], k=12))
        if answer.popular:
            continue  # nothing but a country is known of them: another order, tested below
        judged += 1
        found, scores = answer.titles, scores_of(recommender, row)
        left = [i for i in np.argsort(-scores, kind="stable") if i not in streamed.get(row, set())]
        assert len(found) == 12
        np.testing.assert_allclose([one.score for one in found], scores[left[:12]], rtol=1e-5, atol=1e-6)
        own = [ids.index(one.audiobook_id) for one in found]
        assert len(set(own)) == 12
        assert not set(own) & streamed.get(row, set())
        np.testing.assert_allclose(scores[own], scores[left[:12]], rtol=1e-5, atol=1e-6)
    assert judged >= 40 and max(map(len, streamed.values())) >= 10  # somebody is barred from much


def test_never_a_title_that_is_not_out(recommender: Recommender, world: Any):
    user = world.users["user_id"].iloc[0]
    before = [one.audiobook_id for one in recommender.recommend(user, 100)]
    out = np.array(recommender.available)
    out[[world.audiobooks["audiobook_id"].tolist().index(one) for one in before[:20]]] = False
    recommender.search = ExactSearch(recommender.item_vectors, out)
    assert [one.audiobook_id for one in recommender.recommend(user, 10)] == before[20:30]


def test_k_titles_or_all_there_are(recommender: Recommender, world: Any):
    user, known = (
        world.users["user_id"].iloc[3],
        set(world.first_streams.query("user_idx == 3")["audiobook_idx"]),
    )
    assert [len(recommender.recommend(user, k)) for k in (1, 7)] == [1, 7]
    assert recommender.recommend(user, 7)[:3] == recommender.recommend(user, 3)
    everything = recommender.recommend(user, 1_000)
    assert len(everything) == int(recommender.available.sum()) - len(known)


def test_an_unknown_user_is_named(recommender: Recommender, world: Any):
    said = rf"user 'nobody' is not among the {len(world.users)} users known on 2026-11-20"
    with pytest.raises(BadSettings, match=said):
        recommender.recommend("nobody")
    with pytest.raises(BadSettings, match=said):
        recommender.about("nobody")


def test_a_title_without_a_name_goes_by_its_id():
    table = pd.DataFrame({"audiobook_id": ["a1", "a2", "a3"], "title": ["Named", np.nan, ""]})
    assert _names(table, "audiobook") == ["Named", "a2", "a3"]


# --- what a request brings -------------------------------------------------------------------------------


def raw(recommender: Recommender, profile: Profile) -> np.ndarray:
    return recommender.towers.spec.raw_users(profile.dense)


def test_a_history_that_a_request_brings_makes_the_features_of_the_release(
    recommender: Recommender, world: Any
):
    """A stranger who brings a user's whole history, music, country and age gets that user's features and titles."""
    settings = world.settings.time
    start = date.fromordinal(world.as_of.toordinal() - settings.window_days + 1)
    plays = world.events("music", start, world.as_of, artist_of_track=True)
    checked = 0
    for row in range(0, len(world.users), 23):
        own = recommender.profiles.of_user(row)
        user = world.users.iloc[row]
        if len(own.history) in (0, *range(40, 200)):
            continue
        heard = plays[plays["user_idx"] == row]["item_idx"].value_counts()
        born = user["birth_year"]
        asked = Asked(
            history=[
                Touch(one.item_type, recommender.item_id(one.item_type, one.idx), one.signal)
                for one in own.history
            ],
            artists={str(world.artists.iloc[artist]): float(count) for artist, count in heard.items()},
            country=user["country"] if isinstance(user["country"], str) else None,
            age=None if pd.isna(born) else recommender.as_of.year - float(born),
            exclude=[recommender.item_id("audiobook", idx) for idx in own.streamed],
        )
        prepared = recommender.prepare(asked)
        np.testing.assert_allclose(raw(recommender, prepared.profile), raw(recommender, own), atol=2e-4)
        assert prepared.profile.country_idx == own.country_idx
        assert not prepared.known
        theirs = recommender.recommend(user["user_id"], 5)
        found = recommender.answer(asked).titles[:5]
        np.testing.assert_allclose([one.score for one in found], [one.score for one in theirs], atol=1e-3)
        checked += 1
    assert checked > 5


def test_titles_come_and_go_without_a_trace(recommender: Recommender, world: Any):
    """Two titles added and taken out again leave the features as they were; a second time adds nothing."""
    profiles = recommender.profiles
    row = recommender.row(str(recommender.example_users()[WARM]))
    before = profiles.of_user(row)
    touched = {(one.item_type, one.idx) for one in before.history}
    fresh = [
        Touched("audiobook", idx, "stream")
        for idx in range(len(world.audiobooks))
        if ("audiobook", idx) not in touched
    ]
    added = profiles.with_titles(before, fresh[:2])
    assert not np.allclose(added.dense, before.dense)
    assert set(added.streamed) == {*before.streamed, fresh[0].idx, fresh[1].idx}
    again = profiles.with_titles(added, fresh[:2])
    np.testing.assert_array_equal(again.dense, added.dense)
    assert again.history == added.history
    gone = profiles.without_titles(added, [("audiobook", one.idx) for one in fresh[:2]])
    np.testing.assert_allclose(raw(recommender, gone), raw(recommender, before), atol=1e-5)
    nobody = profiles.without_titles(before, [(one.item_type, one.idx) for one in before.history])
    channels = [profiles.columns(history) for history in recommender.towers.spec.layout.histories]
    for means, count in channels:
        left = raw(recommender, nobody)
        np.testing.assert_allclose(left[[*range(means.start, means.stop), count]], 0.0, atol=1e-5)


def test_a_stranger_has_the_features_of_a_user_without_any(recommender: Recommender, world: Any):
    quiet = np.flatnonzero(
        (world.first_seen_day > 10**8) & world.users["birth_year"].isna() & world.users["country"].isna()
    )
    stranger = recommender.profiles.stranger()
    for row in quiet:
        np.testing.assert_allclose(stranger.dense, recommender.profiles.of_user(row).dense, atol=1e-6)
    asked = recommender.prepare(Asked(country="DE", age=30)).profile
    assert raw(recommender, asked)[0] == pytest.approx((30 - 40) / 20, abs=1e-6)
    assert raw(recommender, asked)[1] == pytest.approx(0, abs=1e-6)
    assert recommender.towers.spec.countries[asked.country_idx - 1] == "DE"


def test_nothing_known_is_popular_in_the_country_and_says_so(recommender: Recommender, world: Any):
    """By new listeners there, of five people or more, then by plays everywhere; nobody's history is needed."""
    answer = recommender.answer(Asked(country="DE", k=30))
    assert (answer.popular, answer.basis, answer.known) == (True, ("country",), False)
    own = recommender._by_country
    own = own[(own["country"] == "DE") & (own["listeners"] >= MIN_EDGE_USERS)]
    out = own[recommender.available[own["audiobook_idx"]]]
    assert len(out) > 3
    ids = [recommender.item_id("audiobook", idx) for idx in out["audiobook_idx"]]
    plays = recommender._recent["streams_30_days"].to_numpy()
    leading = [one.audiobook_id for one in answer.titles[: len(ids)]]
    assert [int(one.score) for one in answer.titles[: len(ids)]] == out["listeners"].tolist()
    assert set(leading) == set(ids)
    rest = [recommender._idx["audiobook"][one.audiobook_id] for one in answer.titles[len(ids) :]]
    assert [plays[idx] for idx in rest] == sorted((plays[idx] for idx in rest), reverse=True)
    assert answer.titles[0].reason == "Popular in DE: number 1 of the last 30 days there."
    # Where nothing is known of the country either, plays decide; and a user id that nobody knows changes nothing.
    everywhere = recommender.answer(Asked(user_id="nobody", k=30))
    assert (everywhere.popular, everywhere.basis, everywhere.known) == (True, (), False)
    assert everywhere.titles[0].reason.startswith("Popular now: ")
    assert recommender.answer(Asked(country="Atlantis", k=30)).titles == everywhere.titles
    assert recommender.answer(Asked(age=40, country="DE")).popular is False


def test_what_a_request_streamed_or_leaves_out_is_not_shown(recommender: Recommender):
    user = str(recommender.example_users()[WARM])
    first = [one.audiobook_id for one in recommender.recommend(user, 6)]
    asked = Asked(user_id=user, k=20, history=[Touch("audiobook", first[0])], exclude=[first[1]])
    after = [one.audiobook_id for one in recommender.answer(asked).titles]
    assert not {first[0], first[1]} & set(after)
    # An audiobook that was only followed may be recommended, and what the release does not know is named.
    followed = Asked(
        user_id=user, k=60, history=[Touch("audiobook", first[0], "follow"), Touch("podcast", "x")]
    )
    answer = recommender.answer(followed)
    assert first[0] in [one.audiobook_id for one in answer.titles]
    assert answer.ignored == {"history": ["x"]}
    assert recommender.answer(Asked(artists={"nobody": 1.0})).ignored == {"artists": ["nobody"]}


def test_only_titles_in_a_language(recommender: Recommender, world: Any):
    language = dict(zip(world.audiobooks["audiobook_id"], world.audiobooks["language"], strict=True))
    for user in (None, str(recommender.example_users()[WARM])):
        found = recommender.answer(Asked(user_id=user, k=100, language="de")).titles
        assert len(found) > 2
        assert {language[one.audiobook_id] for one in found} == {"de"}
    with pytest.raises(UnknownTitle, match=r"no audiobook is in language 'tlh'; known: .*de"):
        recommender.answer(Asked(language="tlh"))


def test_a_new_title_gets_the_vector_that_the_release_would_have_given_it(
    recommender: Recommender, world: Any
):
    """Titles of the catalogue without a listener or an edge, offered as if they were new: same vectors, same scores."""
    heard = set(world.first_streams["audiobook_idx"])
    indptr = [recommender.reasons.edges["audiobook", kind]._indptr for kind in ("audiobook", "podcast")]
    lonely = [
        idx
        for idx in range(len(world.audiobooks))
        if idx not in heard and all(one[idx] == one[idx + 1] for one in indptr)
    ]
    if not lonely:
        pytest.skip("every title of these tables has a listener")
    books = world.audiobooks.iloc[lonely].astype(object).where(world.audiobooks.iloc[lonely].notna(), None)
    new = [
        NewTitle(
            f"new {book.audiobook_id}",
            book.title or "",
            book.description or "",
            None,
            book.language,
            book.genre,
            None if book.published_on is None else pd.Timestamp(book.published_on).date(),
        )
        for book in books.itertuples()
    ]
    placed = recommender._new_titles.place(new)
    np.testing.assert_allclose(placed.vectors, recommender.item_vectors[lonely], atol=2e-4)


def test_a_new_title_without_words_is_placed_by_induction_and_none_depends_on_another(
    recommender: Recommender, releases: Releases
):
    """Exact to the last bit: what is remembered, what came in one batch and what came alone."""
    new = [
        NewTitle(name, name) for name in ("A history of the sea", "", "Cooking for two", "Murder by night")
    ]
    titles = recommender._new_titles
    together = titles.place(new).hgnn
    again = titles.place(new[::-1]).hgnn[::-1]
    fresh = Recommender(releases.store, releases.bundle(releases.dates[0]), "1")._new_titles
    alone = np.concatenate([fresh.place([one]).hgnn for one in new])
    np.testing.assert_array_equal(again, together)
    np.testing.assert_array_equal(alone, together)

    width = recommender._new_titles._encode(new).shape[1]
    nothing = {kind: np.zeros((1, width), np.float32) for kind in ("audiobook", "podcast")}
    no_edges = graph_from_links({kind: np.zeros((2, 0)) for kind in LINK_TYPES}, dict.fromkeys(nothing, 1))
    by_induction = embed_cut(titles._hgnn, nothing, no_edges)["audiobook"][0]
    np.testing.assert_allclose(together[1], by_induction, atol=1e-6)
    assert len(np.unique(together.round(5), axis=0)) == 4


def test_a_new_title_is_ranked_among_the_others(recommender: Recommender):
    user = str(recommender.example_users()[WARM])
    best = recommender.recommend(user, 1)[0]
    new = NewTitle("fresh", best.title, "", "Somebody", "en")
    found = recommender.answer(Asked(user_id=user, k=100, new_titles=[new]))
    (own,) = [one for one in found.titles if one.audiobook_id == "fresh"]
    assert (own.title, own.author) == (best.title, "Somebody")
    assert [one.score for one in found.titles] == sorted((one.score for one in found.titles), reverse=True)
    for hidden in (
        Asked(user_id=user, k=100, new_titles=[new], exclude=["fresh"]),
        Asked(user_id=user, k=100, new_titles=[new], language="de"),
    ):
        assert "fresh" not in [one.audiobook_id for one in recommender.answer(hidden).titles]


def test_similar_titles_are_the_nearest_in_hgnn_space(recommender: Recommender, world: Any):
    for kind, ids in (
        ("audiobook", world.audiobooks["audiobook_id"]),
        ("podcast", world.podcasts["podcast_id"]),
    ):
        vectors = np.array(recommender._hgnn[kind], np.float64)
        out = recommender.available if kind == "audiobook" else np.ones(len(ids), bool)
        for row in range(0, len(ids), 17):
            cosines = np.where(out, vectors @ vectors[row], -np.inf)
            cosines[row] = -np.inf
            found = recommender.similar(kind, ids.iloc[row], 5)
            best = np.sort(cosines)[::-1][:5]
            np.testing.assert_allclose([one.similarity for one in found], best, atol=1e-6)
            assert all(one.users == 0 or one.users >= MIN_EDGE_USERS for one in found)
    with pytest.raises(UnknownTitle, match="there is no podcast 'x' in the release of 2026-11-20"):
        recommender.similar("podcast", "x")
    near = recommender.similar_to_text(NewTitle("new", "The lost childhood", "", language="en"), 3)
    assert len({one.item_id for one in near}) == 3


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
        # In any order, as a history is.
        others = np.random.default_rng(0).permutation(len(ids))
        found = recommender.reasons.edges["audiobook", kind].users_between(np.arange(len(books)), others)
        for idx, book in enumerate(books):
            for place, other in enumerate(others):
                number = found[idx, place]
                both = len(people["audiobook"].get(book, set()) & people[kind].get(ids[other], set()))
                assert number in (0, both)
                assert number == 0 or number >= MIN_EDGE_USERS
                shown += number > 0
                hidden += number == 0 and 0 < both < MIN_EDGE_USERS
    assert shown > 200
    assert hidden > 200
    assert not recommender.reasons.edges["audiobook", "podcast"].users_between(np.array([-1]), others).any()


def test_the_parts_of_a_score_sum_to_it(recommender: Recommender, world: Any):
    for row in range(0, len(world.users), 40):
        for one in recommender.recommend(world.users["user_id"].iloc[row], 15):
            if one.detail is not None:
                assert sum(one.detail.parts.values()) == pytest.approx(one.score, abs=2e-5)


def test_a_drop_is_what_the_affinities_lose(recommender: Recommender, world: Any):
    """Against the whole model: the score with a title's history less the score without it, the towers' part aside."""
    reasons, profiles = recommender.reasons, recommender.profiles
    profile = profiles.of_user(recommender.row(str(recommender.example_users()[WARM])))
    rows = np.arange(0, len(world.audiobooks), 7)
    titles = recommender._titles(rows)
    history, drops = reasons.drops(profile, titles)
    assert len(history) == len({(one.item_type, one.idx) for one in profile.history}) > 10
    affine = ("audiobooks", "podcasts", "music", "country")

    def affinity(one: Profile) -> np.ndarray:
        parts = reasons.parts(one, recommender.vector(one), titles.vectors)
        return np.sum([parts[name] for name in affine], axis=0)

    for place, one in enumerate(history):
        without = profiles.without_titles(profile, [(one.item_type, one.idx)])
        np.testing.assert_allclose(drops[:, place], affinity(profile) - affinity(without), atol=1e-3)


POPULAR = r"Popular in (\w+): number (\d+) of the last 30 days there\.|Popular now: (\d+) plays in the last 30 days\."


def test_every_reason_names_something_true(recommender: Recommender, world: Any):
    """Evidence is the user's own; what has none is popular or new, in figures that the release holds."""
    seen: Counter[str] = Counter()
    plays = recommender._recent.set_index("audiobook_id")
    places = _country_places(recommender._by_country)
    for row in range(0, len(world.users), 9):
        user = world.users["user_id"].iloc[row]
        profile = recommender.profiles.of_user(row)
        touched = {(one.item_type, one.idx, one.signal) for one in profile.history}
        for one in recommender.recommend(user, 60):
            evidence = one.detail.evidence if one.detail else None
            idx = recommender._idx["audiobook"][one.audiobook_id]
            if evidence is not None:
                seen[evidence.link] += 1
                assert (evidence.item_type, evidence.idx, evidence.signal) in touched
                nobody = not (world.first_streams["audiobook_idx"] == idx).any()
                assert recommender.reasons.sentence(evidence, unheard=nobody) in one.reason
                assert evidence.drop > 0
                assert (evidence.link == "itself") == (
                    (evidence.item_type, evidence.idx) == ("audiobook", idx)
                )
                if evidence.link in ("co_listened", "path"):
                    assert evidence.users is not None
                    assert evidence.users >= MIN_EDGE_USERS
            else:
                assert "You " not in one.reason
            if (found := re.match(POPULAR, one.reason)) is not None:
                country, place, number = found.groups()
                seen["country" if country else "popular"] += 1
                if country:
                    assert country == world.users["country"].iloc[row]
                    assert places[country, idx] == int(place)
                else:
                    own = plays.loc[one.audiobook_id]
                    assert int(number) == own["streams_30_days"] >= MIN_EDGE_USERS
                    assert own["listeners"] >= MIN_EDGE_USERS
            assert one.reason
    assert min(seen[link] for link in ("itself", "co_listened", "hgnn", "country", "popular")) > 10


def test_a_path_leads_over_a_title_that_both_share(recommender: Recommender):
    reasons, checked = recommender.reasons, 0
    for row in range(0, len(recommender.books), 5):
        for other in range(0, len(recommender.podcasts), 7):
            path = reasons._path(row, Touched("podcast", other, "stream"))
            if path is None:
                continue
            via, users = path
            first = reasons.edges["podcast", "audiobook"].users_between(np.array([other]), np.array([via]))[
                0, 0
            ]
            second = reasons.edges["audiobook", "audiobook"].users_between(np.array([via]), np.array([row]))[
                0, 0
            ]
            assert users == min(first, second) >= MIN_EDGE_USERS
            checked += 1
    assert checked > 5
    assert reasons._path(-1, Touched("podcast", 0, "stream")) is None


def test_the_evidence_is_the_title_whose_absence_costs_most(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
):
    """Three titles of a history; the dearest is linked by nothing, so the next dearest that is linked is named."""
    history = [Touched("podcast", idx, "stream") for idx in range(3)]
    reasons = recommender.reasons
    monkeypatch.setattr(reasons, "drops", lambda *_: (history, np.array([[0.5, 0.2, 0.4]])))
    monkeypatch.setattr(reasons, "_shared", lambda *_: np.array([[0, 9, 0]]))
    cosines = {"hgnn": np.array([[0.1, 0.9, 0.6]]), "text": np.array([[0.2, 0.9, 0.9]])}
    monkeypatch.setattr(reasons, "_cosines", lambda space, *_: cosines[space])
    titles = Titles(np.array([0]), recommender.item_vectors[:1], np.zeros((1, 1)), np.zeros((1, 1)))
    profile = recommender.profiles.stranger()
    (found,) = reasons.evidence(profile, titles)
    assert found is not None
    assert (found.idx, found.link, found.drop, found.similarity) == (2, "hgnn", 0.4, 0.6)
    # Nobody's listeners are the same as those of a title that has none.
    assert reasons.sentence(found).endswith("; it attracts the same listeners.")
    assert reasons.sentence(found, unheard=True).endswith(
        f"; this one, which nobody had listened to by {recommender.as_of}, should attract the same listeners."
    )
    assert reasons.sentence(found, new=True).endswith(
        "; this one, new since then, should attract the same listeners."
    )
    cosines["hgnn"][0, 2] = 0.4  # only its description is alike
    (found,) = reasons.evidence(profile, titles)
    assert found is not None
    assert (found.idx, found.link) == (2, "text")
    cosines["text"][0, 2] = 0.4  # and now nothing: the second is left, for its listeners
    (found,) = reasons.evidence(profile, titles)
    assert found is not None
    assert (found.idx, found.link, found.users) == (1, "co_listened", 9)
    assert reasons.sentence(found).endswith("(podcast); 9 people listened to both.")


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
    recommender.profiles.users["seen"] |= long_ago
    recommender.profiles.users["warm"] |= np.arange(len(world.users)) == busiest
    rows = [recommender.row(str(user_id)) for user_id in recommender.example_users().values()]
    assert rows[1] != busiest
    assert rows[2] != first
    quiet = world.users.index[world.first_seen_day > 10**8]
    assert rows[2] in quiet


def test_a_listener_to_podcasts_alone_is_no_example_of_music(recommender: Recommender):
    row = recommender.row(str(recommender.example_users()[NO_AUDIOBOOK]))
    spec = recommender.towers.spec
    flag, dense = spec.layout.music_flag, np.array(recommender.profiles._dense)
    dense[row, flag] = (0.0 - spec.user_mean[flag]) * spec.user_scale[flag]
    recommender.profiles._dense = dense
    other = recommender.example_users()[NO_AUDIOBOOK]
    assert other is not None
    assert recommender.row(other) != row


def test_example_users_may_be_missing(recommender: Recommender):
    titles, podcasts, music = recommender.profiles.activity()
    recommender.profiles.activity = lambda: (titles, np.zeros_like(podcasts), music)  # type: ignore[method-assign]
    recommender.profiles.users = recommender.profiles.users.assign(country=None)
    found = recommender.example_users()
    assert found[WARM] is not None
    assert (found[NO_AUDIOBOOK], found[NOTHING]) == (None, None)


def test_about_a_user(recommender: Recommender, world: Any):
    row = recommender.row(str(recommender.example_users()[WARM]))
    own = Counter(
        kind for kind, _ in {(h.item_type, h.idx) for h in recommender.profiles.of_user(row).history}
    )
    user = world.users.iloc[row]
    about = recommender.about(user["user_id"])
    assert about.startswith(f"{user['country']}, ")
    assert f"{own.get('audiobook', 0)} audiobook(s), {own.get('podcast', 0)} podcast(s) lately" in about
    recommender.profiles.users = recommender.profiles.users.assign(country=np.nan, birth_year=np.nan)
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
    someone = recommender.profiles.users["user_id"].iloc[0]
    monkeypatch.setattr(recommender, "example_users", lambda: {WARM: someone})
    recommender.search = ExactSearch(recommender.item_vectors, np.arange(len(recommender.books)) < 4)
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
