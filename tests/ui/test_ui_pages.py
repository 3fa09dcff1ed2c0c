"""Every page of ours in a real browser, behind Airflow's own login: by somebody who may act, by a viewer, by nobody.

The registry is left as it was found, so that other tests of the same services may come after.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pandas as pd
import pytest
from mlflow import MlflowClient
from ui_services import BROWSER_MARKS, Services

from audiorec.recommend import Asked, Recommender
from audiorec.registry import Registry
from audiorec.stack.layout import Layout

pytestmark = BROWSER_MARKS

Shoot = Callable[[Any, str], None]
PAGES = ("runs", "compare", "users", "titles", "release")


@pytest.fixture(scope="module")
def site(services: Services, first_run: str) -> str:
    return f"{services.airflow}/recommender"


@pytest.fixture(scope="module")
def recommender(services: Services, first_run: str) -> Recommender:
    return Recommender.champion(services.settings)


@pytest.fixture(scope="module")
def later(services: Services, first_run: str) -> Iterator[str]:
    """Number of a second version, of the day after: the first one's release under another name, as no run was needed."""
    registry = Registry(services.settings)
    first = services.champion()
    made = registry.register(
        services.first_day + timedelta(days=1),
        "a-copy",
        {"release": first.tags["release"], "hit_rate": "0.5"},
        {},
        [],
    )
    registry.record_verdict(made, "registered: promote is `never`", "never", "manual", promoted=False)
    yield made.number
    client = MlflowClient(services.settings.mlflow.uri, services.settings.mlflow.uri)
    client.delete_model_version(registry.name, made.number)
    registry.set_hold(None)


@pytest.fixture
def quiet(page: Any) -> Iterator[list[str]]:
    """What the browser complained of: what a policy blocked, what could not be loaded."""
    page.goto("about:blank")  # the page before it, Airflow's own, gives up what it was still asking for
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("requestfailed", lambda request: said.append(request.url))
    yield said
    assert said == []


def viewer_token(services: Services) -> str:
    """A session of somebody whose role is viewer, signed as Airflow signs its own."""
    body = {"username": services.account.user, "password": services.account.password}
    own = httpx.post(f"{services.airflow}/auth/token", json=body, trust_env=False).json()["access_token"]
    secrets = json.loads((Layout.of(services.settings).run / "secrets.json").read_text())
    claims = jwt.decode(own, options={"verify_signature": False})
    header = jwt.get_unverified_header(own)
    claims |= {"sub": "eve", "role": "viewer"}
    return jwt.encode(claims, secrets["jwt_secret"], algorithm=header["alg"], headers=header)


def shown(page: Any, row: str, column: str, caption: str) -> str:
    """A cell of the table in a section, by the names of its row and column."""
    table = page.locator(f"section[aria-labelledby={caption}] table").first
    headings = [one.strip() for one in table.locator("thead th").all_inner_texts()]
    line = table.locator("tbody tr", has=page.get_by_role("rowheader", name=row))
    return str(line.locator("th, td").nth(headings.index(column)).inner_text()).strip()


def test_the_ui_has_a_link_to_the_pages(site: str, page: Any, services: Services, shoot: Shoot):
    page.goto(services.airflow)
    page.get_by_role("button", name="Browse").click()
    link = page.locator(f'a[href="{site}/runs"]')
    link.wait_for()
    shoot(page, "20-link")
    with page.context.expect_page() as opened:  # a tab of its own
        link.click()
    opened.value.get_by_role("heading", name="Runs", exact=True).wait_for()
    opened.value.close()


def test_runs_shows_what_the_store_has(
    page: Any, services: Services, first_run: str, site: str, shoot: Shoot, quiet: list[str]
):
    page.goto(f"{site}/runs")
    page.get_by_role("heading", name="Runs", exact=True).wait_for()
    extract, evaluate = (services.manifest(first_run, task) for task in ("extract", "evaluate"))
    day = services.first_day.isoformat()
    assert shown(page, day, "events that count", "rows") == f"{extract.facts['counts']['interactions']:,}"
    assert shown(page, day, "verdict", "dates") == "promoted"
    metrics = pd.read_csv(services.store.open(evaluate, "metrics.csv"))
    (best,) = metrics.query(
        "panel == 'full' and segment == 'all' and metric == 'HR@10' and model == '2T-HGNN'"
    ).itertuples()
    page.get_by_text("The figures").click()
    assert f"{best.value:.3f} [{best.low:.3f}, {best.high:.3f}]" in page.locator("main").inner_text()
    # The picture was really drawn and loaded.
    assert page.locator("img.chart").evaluate("image => image.complete && image.naturalWidth") > 0
    shoot(page, "21-runs", full_page=True)
    page.get_by_role("link", name=day).first.click()
    page.get_by_role("heading", name=f"Data up to {day}").wait_for()
    shoot(page, "22-date", full_page=True)
    page.get_by_role("link", name="Data Docs").click()
    page.get_by_role("heading", name=f"Data quality of {day}").wait_for()


def test_what_if_changes_the_list_of_a_user(
    page: Any, recommender: Recommender, site: str, shoot: Shoot, quiet: list[str]
):
    user = recommender.example_users()["a warm user"]
    page.goto(f"{site}/users")
    page.get_by_label("User id").fill(str(user))
    page.get_by_label("User id").press("Enter")
    page.get_by_role("heading", name=str(user)).wait_for()
    assert str(user) not in page.url
    titles = page.locator("ol.recommended b")
    before = titles.all_inner_texts()
    assert before == [one.title for one in recommender.answer(Asked(user_id=user, k=20)).titles]
    shoot(page, "23-user", full_page=True)
    boxes = page.get_by_role("checkbox")
    for number in range(boxes.count()):
        boxes.nth(number).focus()
        page.keyboard.press("Space")
    page.get_by_role("button", name="Recommend without the ticked").press("Enter")
    page.get_by_role("link", name="With all again").wait_for()
    without = [one.partition(":")[::2] for one in parse_qs(urlsplit(page.url).query)["without"]]
    answer = recommender.answer(Asked(user_id=user, k=20, without=without))
    assert titles.all_inner_texts() == [one.title for one in answer.titles] != before
    shoot(page, "24-what-if", full_page=True)


def test_a_title_says_who_would_get_it(
    page: Any, recommender: Recommender, site: str, shoot: Shoot, quiet: list[str]
):
    first = recommender.answer(Asked(k=1)).titles[0]
    page.goto(f"{site}/titles")
    page.get_by_label("Part of a title").fill(first.title)
    page.get_by_role("button", name="Find").click()
    page.get_by_role("link", name=first.title, exact=True).first.click()
    page.get_by_role("heading", name=first.title, exact=True).wait_for()
    near = recommender.similar("audiobook", first.audiobook_id, 12)
    cells = page.locator("section[aria-labelledby=near] tbody th").all_inner_texts()
    assert cells == [one.title for one in near]
    shoot(page, "25-title", full_page=True)
    page.get_by_role("link", name="user 1", exact=True).click()
    assert first.title in page.locator("ol.recommended b").all_inner_texts()[:10]


def test_compare_shows_both_and_one_users_lists(
    page: Any, services: Services, later: str, site: str, shoot: Shoot, quiet: list[str]
):
    champion = services.champion().number
    page.goto(f"{site}/compare?candidate={later}&champion={champion}")
    page.get_by_role("heading", name="Metrics by segment").wait_for()
    page.locator("#user").scroll_into_view_if_needed()
    page.get_by_role("link", name="a warm user").click()
    lists = page.locator("ol.recommended")
    lists.nth(1).wait_for()
    # One release under two names: nothing rises, nothing falls.
    assert lists.nth(0).locator("b").all_inner_texts() == lists.nth(1).locator("b").all_inner_texts()
    assert "100% of a user's first ten stays" in page.locator("main").inner_text()
    shoot(page, "26-compare", full_page=True)


def test_the_keyboard_gets_everywhere(page: Any, site: str):
    page.goto(f"{site}/release")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_pages_fit_a_telephone_in_the_dark(page: Any, site: str, browser: Any, shoot: Shoot):
    state = page.context.storage_state()
    context = browser.browser.new_context(
        viewport={"width": 390, "height": 800}, color_scheme="dark", storage_state=state
    )
    try:
        small = context.new_page()
        for name in PAGES:
            small.goto(f"{site}/{name}")
            assert small.evaluate("document.documentElement.scrollWidth") <= 390, name
            assert small.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"
            shoot(small, f"27-narrow-{name}", full_page=True)
    finally:
        context.close()


def test_rollback_works_for_who_may(
    page: Any, services: Services, later: str, site: str, shoot: Shoot, quiet: list[str]
):
    first = services.champion().number
    page.goto(f"{site}/release")
    shoot(page, "28-release", full_page=True)
    promote = page.locator("form", has=page.get_by_role("heading", name="Promote"))
    promote.get_by_label("Version").select_option(later)
    promote.get_by_label("Why").fill("to be rolled back")
    promote.get_by_role("button").click()
    page.get_by_text(f"Done: champion moved to version {later}").wait_for()
    assert services.champion().number == later
    back = page.locator("form", has=page.get_by_role("heading", name="Roll back"))
    back.get_by_label("Why").fill("empty shelves")
    back.get_by_role("button").click()
    page.get_by_text("Done: champion rolled back").wait_for()
    assert services.champion().number == first
    assert services.versions()[later].rejected
    main = page.locator("main").inner_text()
    assert f"rejected by {services.account.user} (pages): empty shelves" in main
    shoot(page, "29-rolled-back", full_page=True)
    hold = page.locator("form", has=page.get_by_role("heading", name="Take the hold back"))
    hold.get_by_label("Why").fill("all is well")
    hold.get_by_role("button").click()
    page.get_by_text("nothing is held").wait_for()
    assert Registry(services.settings).hold() is None


def test_rollback_is_refused_to_a_viewer(browser: Any, services: Services, site: str, shoot: Shoot):
    champion = services.champion().number
    token = viewer_token(services)
    context = browser.browser.new_context()
    context.add_cookies([{"name": "_token", "value": token, "url": services.airflow}])
    try:
        theirs = context.new_page()
        theirs.goto(f"{site}/release")
        theirs.get_by_text("Your role may look, not move").wait_for()
        assert theirs.locator("form").count() == 0
        shoot(theirs, "30-viewer", full_page=True)
        # Not by hand either, with the token of a form that they may use.
        theirs.goto(f"{site}/users")
        form = theirs.locator("input[name=token]").get_attribute("value")
        for action in ("rollback", "promote", "hold", "unhold", "reject"):
            answer = context.request.post(
                f"{site}/release/{action}",
                form={"token": form, "why": "x", "expected": champion, "version": champion},
            )
            assert answer.status == 403, action
            assert "audiobook_rollback" in answer.text()
    finally:
        context.close()
    assert services.champion().number == champion


def test_every_page_refuses_the_anonymous(browser: Any, services: Services, site: str):
    from serving.pages.access import Person
    from serving.pages.app import create_pages

    app = create_pages(services.settings, lambda: Person("x", False), "x")
    tried = 0
    for route in app.routes:
        for method in route.methods - {"HEAD"}:  # type: ignore[attr-defined]
            address = f"{site}{route.path}".replace("{as_of}", services.first_day.isoformat())  # type: ignore[attr-defined]
            answer = httpx.request(method, address, trust_env=False)
            assert answer.status_code == 401, (method, address)
            tried += 1
    assert tried >= 18
    context = browser.browser.new_context()
    try:
        stranger = context.new_page()
        stranger.goto(f"{site}/runs")
        stranger.locator("input[name=username]").fill(services.account.user)
        stranger.locator("input[name=password]").fill(services.account.password)
        stranger.get_by_role("button", name="Sign in").click()
        stranger.get_by_role("heading", name="Runs", exact=True).wait_for()  # where they wanted to go
    finally:
        context.close()
