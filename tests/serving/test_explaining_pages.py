"""The pages over a real store and a real registry: their numbers are the store's, and who may do what."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

from audiorec.recommend import Asked, Recommender
from audiorec.registry import CHALLENGER, CHAMPION, Registry
from audiorec.release import ReleaseControl
from audiorec.runner import run_task
from audiorec.settings import Settings
from audiorec.store import Store
from serving.pages.access import Person, Seal
from serving.pages.app import create_pages
from serving.pages.base import Pages

if TYPE_CHECKING:
    from released import Releases

pytestmark = pytest.mark.long

PREFIX = "/recommender"
ROOT = Path(__file__).parents[2]
PEOPLE = {"ann": Person("ann", True), "eve": Person("eve", False)}
"""Ann may move a release, Eve may look."""


def who(request: Request) -> Person:
    """The person that a header names, as Airflow would by its cookie."""
    name = request.headers.get("x-person")
    if name is None:
        raise HTTPException(401, "Not authenticated")
    if name not in PEOPLE:
        raise HTTPException(403, "Forbidden")
    return PEOPLE[name]


@dataclass(frozen=True)
class Site:
    """The pages of a store with two versions: 1, the champion, and 2, a day later, registered only."""

    settings: Settings
    app: FastAPI
    client: TestClient
    """Ann's browser."""

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(f"{PREFIX}{path}", **options)

    def html(self, path: str, **options: Any) -> str:
        answer = self.get(path, **options)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[-500:])
        return str(answer.text)

    def post(self, path: str, person: str = "ann", token: str | None = None, **fields: Any) -> Any:
        given = self.pages.seal.form_token(PEOPLE[person]) if token is None else token
        return self.client.post(
            f"{PREFIX}{path}",
            data={"token": given, **fields},
            headers={"x-person": person},
            follow_redirects=False,
        )

    @property
    def pages(self) -> Pages:
        found: Pages = self.app.state.pages
        return found

    @property
    def recommender(self) -> Recommender:
        return self.pages.releases.get().recommender

    @property
    def store(self) -> Store:
        return Store(self.settings.store.uri, self.settings.store.scratch)

    def champion(self) -> str | None:
        version = Registry(self.settings).alias(CHAMPION)
        return None if version is None else version.number


def mounted(settings: Settings, login: Any = None) -> tuple[FastAPI, TestClient]:
    """The pages as Airflow mounts them, below a prefix."""
    app = create_pages(settings, who, "a secret of the tests", login)
    host = FastAPI()
    host.mount(PREFIX, app)
    return app, TestClient(host, headers={"x-person": "ann"})


@pytest.fixture(scope="module")
def site(releases: Releases, mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = releases.copy(
        tmp_path_factory.mktemp("pages"),
        mlflow={"uri": mlflow_uri},
        release={"model_name": "pages"},
    )
    for as_of, policy in zip(releases.dates, ("fresh", "never"), strict=True):
        run_task("promote", settings, as_of, options={"promote": policy, "run_type": "manual", "by": "ann"})
    app, client = mounted(settings)
    with client:
        yield Site(settings, app, client)


def plain(html: str) -> str:
    """What a reader sees: no tags, white space folded."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def rows(html: str) -> list[list[str]]:
    """All rows of all tables, cells as a reader sees them."""
    return [
        [plain(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    ]


def a_user(site: Site, kind: str = "a warm user") -> str:
    user = site.recommender.example_users()[kind]
    assert user is not None
    return user


def listed(html: str) -> list[str]:
    """Titles of the recommendations, in order."""
    section = html[html.index('id="recommended"') :]
    return [unescape(title) for title in re.findall(r"<li value.*?<b>(.*?)</b>", section, re.DOTALL)]


# --- who may


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path that the application answers, parameters filled in."""
    found = []
    for route in app.routes:
        path = re.sub(r"\{[^}]+\}", "x", route.path)  # type: ignore[attr-defined]
        found += [(method, path) for method in route.methods - {"HEAD"}]  # type: ignore[attr-defined]
    return found


def test_every_route_refuses_the_anonymous(site: Site):
    every = routes(site.app)
    assert len(every) >= 18
    assert {"/runs", "/compare", "/users", "/titles", "/release", "/data-docs/x", "/pages.css"} <= {
        path for _, path in every
    }
    stranger = TestClient(site.client.app)
    for method, path in every:
        answer = stranger.request(method, f"{PREFIX}{path}", follow_redirects=False)
        assert (answer.status_code, answer.json()) == (401, {"detail": "not logged in"}), (method, path)
        refused = stranger.request(method, f"{PREFIX}{path}", headers={"x-person": "nobody"})
        assert refused.status_code == 403, (method, path)


def test_a_browser_is_sent_to_the_login_and_a_form_is_not(site: Site):
    _, client = mounted(site.settings, login=lambda request: f"/auth/login/?next={request.url.path}")
    del client.headers["x-person"]
    asked = {"headers": {"accept": "text/html"}, "follow_redirects": False}
    sent = client.get(f"{PREFIX}/runs", **asked)
    assert (sent.status_code, sent.headers["location"]) == (302, f"/auth/login/?next={PREFIX}/runs")
    assert client.post(f"{PREFIX}/release/hold", **asked).status_code == 401


def test_a_viewer_sees_no_form_and_every_action_is_refused(site: Site):
    page = site.html("/release", headers={"x-person": "eve"})
    assert "<form" not in page
    assert "Your role may look, not move" in page
    fields = {"why": "x", "expected": "1", "version": "2", "hold_days": "1"}
    actions = [path for method, path in routes(site.app) if method == "POST" and "/release/" in path]
    assert len(actions) == 5
    before = list(ReleaseControl(site.settings).history.newest_first())
    for action in actions:
        answer = site.post(action, person="eve", **fields)
        assert answer.status_code == 403, action
        assert "audiobook_rollback" in answer.text
    assert list(ReleaseControl(site.settings).history.newest_first()) == before
    assert site.champion() == "1"


def test_a_form_that_is_not_ours_is_refused(site: Site):
    others = Seal("another secret").form_token(PEOPLE["ann"])
    eves = site.pages.seal.form_token(PEOPLE["eve"])
    for token in ("", "x", others, eves):
        assert site.post("/release/hold", token=token, why="x").status_code == 403
        assert site.post("/users/find", token=token, user="u1").status_code == 403
    cross = site.client.post(
        f"{PREFIX}/release/hold",
        data={"token": site.pages.seal.form_token(PEOPLE["ann"]), "why": "x"},
        headers={"sec-fetch-site": "cross-site"},
    )
    assert cross.status_code == 403
    assert Registry(site.settings).hold() is None


def test_pages_run_no_script_and_load_nothing_from_elsewhere(site: Site):
    handle = site.pages.seal.handle(a_user(site))
    for path in (
        "/runs",
        "/runs/2026-11-20",
        "/compare",
        "/users",
        f"/users/{handle}",
        "/titles",
        "/release",
    ):
        answer = site.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "script-src" not in policy
        assert not re.search(r"<script|\son\w+=|style=|javascript:", answer.text), path
        for address in re.findall(r'(?:src|srcset|action|<link[^>]* href)="([^"]+)"', answer.text):
            assert address.startswith(PREFIX), (path, address)
        assert answer.text.count("<h1>") == 1
        assert 'class="skip" href="#main"' in answer.text
        labelled = set(re.findall(r'<label for="([^"]+)"', answer.text))
        for field in re.findall(r"<(?:input|select)(?![^>]*(?:hidden|checkbox))[^>]*>", answer.text):
            name = re.search(r' id="([^"]+)"', field)
            assert (name and name[1] in labelled) or "<select name=" in field, field


def test_what_somebody_typed_is_text(site: Site):
    page = site.html('/titles?q=<script>"x"')
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert site.get("/runs?before=yesterday").status_code == 422
    assert site.get("/runs/2020-01-01").status_code == 404
    assert site.get("/compare?candidate=99").status_code == 404
    assert site.get("/titles/audiobook/none").status_code == 404
    assert site.get("/users/x").status_code == 404


# --- Runs


def test_runs_shows_the_counts_and_figures_of_the_store(site: Site, releases: Releases):
    page = rows(site.html("/runs"))
    for as_of, word in zip(releases.dates, ("promoted", "registered"), strict=True):
        inputs = releases.inputs(as_of, site.settings)
        tasks, *_ = [row for row in page if row[0] == str(as_of)]
        assert tasks[1] == word
        extract = site.store.run_record(inputs["extract"])["seconds"]
        assert tasks[3] == f"✓ done {extract:.1f} s"
        (counted,) = [row for row in page if row[0] == str(as_of) and len(row) == 10]
        facts = inputs["extract"].facts
        assert counted[1] == f"{facts['counts']['interactions']:,}"
        assert counted[2] == f"{sum(facts['rejects'].values()):,}"
        assert counted[5] == f"{inputs['extract'].files['audiobooks.parquet'].rows:,}"
        metrics = pd.read_csv(inputs.open("evaluate", "metrics.csv"))
        of_all = metrics[(metrics.panel == "full") & (metrics.segment == "all") & (metrics.metric == "HR@10")]
        shown = [row for row in page if len(row) == 4 and row[0] == str(as_of)]
        assert shown == [
            [str(as_of), one.model, f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]", f"{one.users:,}"]
            for one in of_all.itertuples()
        ]


def test_a_date_shows_every_task_and_a_failed_one_by_its_code(
    site: Site, releases: Releases, monkeypatch: pytest.MonkeyPatch
):
    as_of = releases.dates[0]
    page = site.html(f"/runs/{as_of}")
    inputs = releases.inputs(as_of, site.settings)
    for task, manifest in inputs.items():
        assert manifest.fingerprint in page, task
    metrics = pd.read_csv(inputs.open("evaluate", "metrics.csv"))
    for panel in ("full", "known"):
        one = metrics.query(
            f"panel == '{panel}' and segment == 'warm' and metric == 'MRR' and model == '2T'"
        ).iloc[0]
        assert f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" in plain(page)
    # Of the second date the data were never checked.
    alert = {
        "code": "TASK-OOM",
        "task_id": "validate",
        "data_date": str(releases.dates[1]),
        "status": "firing",
    }
    monkeypatch.setattr("serving.pages.runs.recorded", lambda _: [alert])
    (row, *_) = [row for row in rows(site.html("/runs")) if row[0] == str(releases.dates[1])]
    assert row[4] == "✕ failed TASK-OOM"


def test_a_date_says_whether_a_run_would_use_its_results(site: Site, releases: Releases):
    page = site.html(f"/runs/{releases.dates[0]}?check=true")
    standing = page[page.index('id="standing"') : page.index('id="metrics"')]
    by_task = {row[0]: row[1] for row in rows(standing)}
    assert by_task["evaluate"] == by_task["build_index"] == "done"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_charts_are_pictures_with_the_models_and_dates_in_them(site: Site, releases: Releases, theme: str):
    over_dates = site.get(f"/charts/quality.svg?theme={theme}")
    ElementTree.fromstring(over_dates.text)
    assert over_dates.headers["content-type"] == "image/svg+xml"
    for text in ("2T-HGNN", "popularity, recent", str(releases.dates[1]), "promoted"):
        assert text in over_dates.text
    beside = site.get(f"/charts/segments.svg?candidate=2&champion=1&theme={theme}")
    ElementTree.fromstring(beside.text)
    assert "candidate, version 2" in beside.text


# --- Compare


def test_compare_shows_both_versions_figures_and_the_change_of_the_lists(site: Site, releases: Releases):
    page = site.html("/compare")
    assert "registered: promote is `never`" in plain(page)
    table = rows(page)
    for metric, segment in (("HR@10", "warm"), ("tail HR@10", "all")):
        (row,) = [row for row in table if row[:2] == [metric, segment]]
        for column, as_of in ((2, releases.dates[0]), (3, releases.dates[1])):
            metrics = pd.read_csv(releases.inputs(as_of, site.settings).open("evaluate", "metrics.csv"))
            (one,) = metrics[
                (metrics.panel == "full")
                & (metrics.model == "2T-HGNN")
                & (metrics.segment == segment)
                & (metrics.metric == metric)
            ].itertuples()
            assert row[column] == f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
    old, new = (site.pages.releases.get(number) for number in ("1", "2"))
    users = new.sample(old)
    counts: dict[str, list[int]] = {}
    for side, loaded in enumerate((old, new)):
        for user in users:
            for one in loaded.recommender.answer(Asked(user_id=user, k=10, reasons=False)).titles:
                counts.setdefault(one.title, [0, 0])[side] += 1
    change = max(after - before for before, after in counts.values())
    rose = [row for row in table if len(row) == 4 and row[3] == f"+{change}"]
    assert rose
    for title, before, after, _ in rose:
        assert counts[title] == [int(before), int(after)]


def test_compare_lays_one_users_lists_side_by_side(site: Site):
    user = a_user(site)
    sent = site.post("/users/find", user=user, candidate="2", champion="1")
    address = sent.headers["location"].removeprefix(PREFIX)
    page = site.html(address.partition("#")[0])
    both = page[page.index('id="user"') :]
    for number in ("1", "2"):
        titles = site.pages.releases.get(number).recommender.answer(Asked(user_id=user, k=10)).titles
        mine = both.split(f"version {number}</h4>")[1].split("</ol>")[0]
        shown = re.findall(r"<b>(.*?)</b>", mine)
        assert [unescape(one) for one in shown] == [one.title for one in titles]


# --- User


def test_a_user_sees_history_left_and_the_services_answer_right(site: Site):
    user = a_user(site)
    page = site.html(f"/users/{site.pages.seal.handle(user)}")
    answer = site.recommender.answer(Asked(user_id=user, k=20))
    assert listed(page) == [one.title for one in answer.titles]
    said = plain(page)
    for one in answer.titles:
        assert one.reason in said
        assert f"score {one.score:.3f}" in said
    history = {
        f"{one.item_type}:{site.recommender.item_id(one.item_type, one.idx)}"
        for one in site.recommender.profiles.of_user(site.recommender.row(user)).history
    }
    assert set(re.findall(r'name="without" value="([^"]+)"', page)) == history
    refresh = site.pages.releases.get().bundle.manifests["refresh"]
    stored = pd.read_parquet(site.store.open(refresh, "history.parquet"))
    latest = stored[stored.user_idx == site.recommender.row(user)]["day"].max()
    assert str(np.datetime64("2000-01-01") + np.timedelta64(int(latest), "D")) in said


def test_what_is_ticked_off_changes_the_list_as_the_recommender_says(site: Site):
    user = a_user(site)
    handle = site.pages.seal.handle(user)
    everything = re.findall(r'name="without" value="([^"]+)"', site.html(f"/users/{handle}"))
    page = site.html(f"/users/{handle}?" + urlencode({"without": everything}, doseq=True))
    taken = [(one.partition(":")[0], one.partition(":")[2]) for one in everything]
    answer = site.recommender.answer(Asked(user_id=user, k=20, without=taken))
    before = site.recommender.answer(Asked(user_id=user, k=20))
    assert listed(page) == [one.title for one in answer.titles]
    assert listed(page) != [one.title for one in before.titles]
    assert page.count(" checked>") == len(everything)
    place = {one.audiobook_id: number for number, one in enumerate(before.titles, 1)}
    for number, one in enumerate(answer.titles, 1):
        was = place.get(one.audiobook_id)
        expected = "new here" if was is None else f"up from {was}" if was > number else f"down from {was}"
        if was != number:
            assert f"{one.title} {one.author or ''} {expected}".replace("  ", " ") in plain(page)


def test_no_address_holds_an_id_or_a_pseudonym(site: Site):
    user = a_user(site)
    source_id = next(
        str(one)
        for one in pd.read_parquet(Path(site.settings.source.uri) / "users.parquet")["user_id"].dropna()
        if site.recommender.profiles.row(str(one)) is not None
    )
    for given in (user, source_id):
        sent = site.post("/users/find", user=given)
        assert sent.status_code == 303
        for name in (
            given,
            site.recommender.profiles.users["user_id"].iloc[site.recommender.profiles.row(given)],
        ):
            assert str(name) not in unquote(sent.headers["location"])
        assert site.get(sent.headers["location"].removeprefix(PREFIX)).status_code == 200
    addresses = re.findall(r'(?:href|action)="([^"]+)"', site.html(f"/users/{site.pages.seal.handle(user)}"))
    assert addresses
    assert not any(user in unquote(one) for one in addresses)
    assert site.post("/users/find", user="no such user").headers["location"] == f"{PREFIX}/users?missing=true"


# --- Title


def test_a_title_shows_its_neighbours_and_no_edge_of_few_people(site: Site):
    recommender = site.recommender
    graph = site.pages.releases.get().bundle.manifests["build_graph"]
    indptr, indices, users = (
        np.load(site.store.open(graph, f"release.audiobook_audiobook.{part}.npy"))
        for part in ("indptr", "indices", "users")
    )
    few = np.diff(indptr) - np.array([(users[a:b] >= 5).sum() for a, b in itertools.pairwise(indptr)])
    idx = int(np.argmax(np.where(np.diff(indptr) > few, few, -1)))
    edges = dict(
        zip(
            indices[indptr[idx] : indptr[idx + 1]].tolist(),
            users[indptr[idx] : indptr[idx + 1]].tolist(),
            strict=True,
        )
    )
    assert min(edges.values()) < 5
    item_id = recommender.item_id("audiobook", idx)
    page = site.html(f"/titles/audiobook/{item_id}")
    near = rows(page[page.index('id="near"') : page.index('id="shared"')])[1:]
    similar = recommender.similar("audiobook", item_id, 12)
    assert near == [
        [one.title, f"{one.similarity:.2f}", f"{one.users}" if one.users else "under 5"] for one in similar
    ]
    shared = rows(page[page.index('id="shared"') :])[1:]
    assert shared
    assert all(int(people) >= 5 for _, _, people in shared)
    by_title = {recommender.title("audiobook", row): people for row, people in edges.items()}
    for title, kind, people in shared:
        if kind == "audiobook":
            assert by_title[title] == int(people)


def test_a_title_counts_who_would_get_it(site: Site):
    first = site.recommender.answer(Asked(user_id=a_user(site), k=1)).titles[0]
    page = plain(site.html(f"/titles/audiobook/{first.audiobook_id}"))
    users = site.pages.releases.get().sample()
    getting = [
        user
        for user in users
        if first.audiobook_id
        in [
            one.audiobook_id
            for one in site.recommender.answer(Asked(user_id=user, k=10, reasons=False)).titles
        ]
    ]
    assert f"{len(getting)} of {len(users)} users looked at" in page
    assert f"{first.title} audiobook" in plain(site.html(f"/titles?q={first.audiobook_id.upper()}"))


def test_a_podcast_has_a_page(site: Site):
    item_id = site.recommender.item_id("podcast", 0)
    page = site.html(f"/titles/podcast/{item_id}")
    assert "Who would get it" not in page
    assert "Nearest podcasts" in page


# --- without the registry, without a champion, without a user


def test_without_the_registry_there_is_what_the_store_knows(site: Site, tiny: Any):
    away = site.settings.mlflow.model_copy(update={"uri": tiny.no_mlflow, "timeout_seconds": 0.2})
    _, client = mounted(site.settings.model_copy(update={"mlflow": away}))
    release = client.get(f"{PREFIX}/release")
    assert release.status_code == 200
    assert "The registry cannot be asked" in release.text
    assert "manual run, promote = fresh" in release.text
    assert "<form" not in release.text
    for path in ("/runs", "/titles", "/users"):
        assert client.get(f"{PREFIX}{path}").status_code == 200
    assert client.get(f"{PREFIX}/compare").status_code == 503


def test_an_empty_store_says_that_nothing_is_there_yet(site: Site, tmp_path: Path):
    store = site.settings.store.model_copy(
        update={"uri": str(tmp_path / "store"), "scratch": str(tmp_path / "s")}
    )
    _, client = mounted(site.settings.model_copy(update={"store": store}))
    assert "No run has left a result yet" in client.get(f"{PREFIX}/runs").text
    asked = client.get(f"{PREFIX}/users")
    assert asked.status_code == 409
    assert "no version was promoted" in asked.text


def test_a_forgotten_user_is_nobody(site: Site):
    user = a_user(site, "a user who knows only music and podcasts")
    handle = site.pages.seal.handle(user)
    assert site.get(f"/users/{handle}").status_code == 200
    # By the pseudonym, which is what a tombstone is named by.
    site.store.add_record(
        "forgotten", f"{user}.json", json.dumps({"since": "2026-11-20T00:00:00+00:00"}).encode()
    )
    app, client = mounted(site.settings)
    handle = app.state.pages.seal.handle(user)
    assert client.get(f"{PREFIX}/users/{handle}").status_code == 404
    token = app.state.pages.seal.form_token(PEOPLE["ann"])
    sent = client.post(f"{PREFIX}/users/find", data={"token": token, "user": user}, follow_redirects=False)
    assert sent.headers["location"].endswith("missing=true")


# --- Release; last, because these move it


def test_release_is_promoted_held_and_rolled_back(site: Site):
    page = site.html("/release")
    assert "version 1, data up to 2026-11-20" in plain(page)
    assert [row[0] for row in rows(page[page.index('id="versions"') : page.index('id="past"')])[1:]] == [
        "2",
        "1",
    ]

    held = site.post("/release/hold", why="holidays", hold_days="2")
    assert "Done: nothing is promoted until" in plain(
        site.html(held.headers["location"].removeprefix(PREFIX))
    )
    refused = site.post("/release/promote", why="we want it", version="2", expected="1")
    assert refused.status_code == 409
    assert "Nothing was done" in refused.text
    assert "the alias is held: ann (pages): holidays" in plain(refused.text)
    assert site.champion() == "1"
    assert site.post("/release/unhold", why="back").status_code == 303

    stale = site.post("/release/promote", why="we want it", version="2", expected="7")
    assert stale.status_code == 409
    assert "not 7: it was moved already" in plain(stale.text)
    done = site.post("/release/promote", why="we want it", version="2", expected="1")
    assert done.status_code == 303
    assert site.champion() == "2"
    assert site.recommender.version == "2"  # the pages follow
    tags = Registry(site.settings).get("2").tags  # type: ignore[union-attr]
    assert (tags["promoted"], tags["verdict"]) == ("true", "promoted: forced")
    assert site.post("/release/reject", why="x", version="2").status_code == 409

    back = site.post("/release/rollback", why="empty shelves", expected="2", hold_days="1")
    assert back.status_code == 303
    assert site.champion() == "1"
    assert Registry(site.settings).get("2").rejected  # type: ignore[union-attr]
    assert Registry(site.settings).alias(CHALLENGER) is None
    page = plain(site.html("/release"))
    assert "rejected by ann (pages): empty shelves" in page
    newest = next(ReleaseControl(site.settings).history.newest_first()).entry
    assert newest.who == "ann (pages)"
    again = site.post("/release/rollback", why="again", expected="2")
    assert again.status_code == 409
    never = site.post("/release/promote", why="it was fine", version="2", expected="1", override_hold="true")
    assert never.status_code == 409
    assert "never eligible again" in never.text
    assert site.champion() == "1"


def test_a_form_without_a_reason_is_refused(site: Site):
    assert site.post("/release/hold", why="").status_code == 422
    assert site.post("/release/rollback", expected="1").status_code == 422


def test_the_plugin_loads_nothing_heavy(tmp_path: Path):
    """Every task start and the API server load it."""
    code = (
        "import sys; sys.path.insert(0, 'serving/plugins'); import airflow.plugins_manager; before = set(sys.modules);"
        "import recommender_pages; print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        check=True,
    )
    loaded = set(json.loads(found.stdout.splitlines()[-1].replace("'", '"')))
    assert "recommender_pages" in loaded
    assert not loaded & {
        "torch",
        "pandas",
        "numpy",
        "pyarrow",
        "matplotlib",
        "mlflow",
        "faiss",
        "fastapi",
        "serving",
    }
