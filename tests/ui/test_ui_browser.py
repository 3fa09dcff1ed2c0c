"""The UI as a person meets it, in a real browser: log in, read, trigger with a date, look at what came out.

Screenshots are kept (see the fixture `screenshots`): a page may be there and yet be unreadable, which no test
can tell, so look at them after a change of texts, logs or pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from ui_services import BROWSER_MARKS, FIRST_DAY, Services

from audiorec.chain import CHAIN
from audiorec.stack.layout import DAG_ID

pytestmark = BROWSER_MARKS

Shoot = Callable[[Any, str], None]


@pytest.fixture(scope="module")
def triggered(page: Any, services: Services, shoot: Shoot) -> str:
    """Id of the run that was triggered through the form, with its date typed in."""
    page.goto(f"{services.airflow}/dags/{DAG_ID}")
    page.get_by_role("button", name="Trigger").click()
    form = page.get_by_role("dialog")
    as_of = form.locator("#element_as_of")
    as_of.press_sequentially(f"{FIRST_DAY:%m%d%Y}")
    assert as_of.input_value() == FIRST_DAY.isoformat()
    assert "the last complete UTC day before the logical date" in form.inner_text()
    profile = form.get_by_role("combobox").first
    profile.click()
    shoot(page, "03-trigger-profiles")
    profile.press_sequentially("smoke")
    profile.press("Enter")
    assert form.locator("input[name=element_profile]").input_value() == "smoke"
    shoot(page, "04-trigger-form")
    form.get_by_role("button", name="Trigger").click()
    form.wait_for(state="hidden")
    (run,) = [run for run in services.client.runs(DAG_ID) if run.run_type == "manual"]
    services.runs["first"] = run.run_id
    page.goto("about:blank")  # drawing the progress of a run takes a core's fifth from it
    return run.run_id


def open_task(page: Any, services: Services, run_id: str, task: str, tab: str | None = None) -> None:
    page.goto(f"{services.airflow}/dags/{DAG_ID}/runs/{run_id}/tasks/{task}")
    page.get_by_role("heading", name=task).wait_for()
    if tab:
        page.get_by_role("link", name=tab, exact=True).click()


def test_documentation_of_the_dag_can_be_read(page: Any, services: Services, shoot: Shoot):
    page.goto(f"{services.airflow}/dags/{DAG_ID}")
    page.get_by_role("button", name="Dag Docs").click()
    documentation = page.get_by_role("dialog")
    documentation.get_by_text("What to click").wait_for()
    headings = documentation.get_by_role("heading").all_inner_texts()
    assert headings[1:] == [
        "Audiobook recommendations, once a day",
        "Which day",
        "What is normal",
        "What to click",
    ]
    text = documentation.inner_text()
    assert "**" not in text  # Markdown that nobody rendered
    assert "left empty it means the last complete day before the logical date" in text
    shoot(page, "02-dag-docs")
    page.keyboard.press("Escape")


def test_the_run_of_the_form_takes_its_date_and_succeeds(
    page: Any, triggered: str, first_run: str, services: Services, shoot: Shoot
):
    assert first_run == triggered
    assert services.client.run(DAG_ID, first_run).conf["as_of"] == FIRST_DAY.isoformat()
    assert services.result(first_run, "resolve_as_of") == FIRST_DAY.isoformat()
    assert set(services.states(first_run).values()) == {"success"}
    results = {task: services.result(first_run, task) for task in CHAIN}
    assert {result["as_of"] for result in results.values()} == {FIRST_DAY.isoformat()}
    assert {task for task, result in results.items() if result["state"] != "done"} == set()
    page.goto(f"{services.airflow}/dags/{DAG_ID}/runs/{first_run}")
    page.get_by_text("14 Task Instances").wait_for()
    # The grid: one cell a task, each a link to its instance.
    for task in services.client.tasks(DAG_ID):
        assert page.locator(f'a[href$="/runs/{first_run}/tasks/{task}"]').count() >= 1, task
    shoot(page, "05-run")


def test_a_task_shows_its_counts_and_verdict_in_its_log(
    page: Any, first_run: str, services: Services, shoot: Shoot
):
    open_task(page, services, first_run, "validate")
    page.get_by_text("passed with").first.wait_for()
    shown = page.locator("body").inner_text()
    shoot(page, "06-validate-log")
    for expected in (
        r"suite +checks +critical +warnings",
        r"audiobook_events +\d+ +0 ",
        r"expectations +\d+",
    ):
        assert re.search(expected, shown), expected
    assert re.search(r"verdict +passed with \d+ warning", shown)
    log = services.log(first_run, "validate")
    assert re.search(rf"{FIRST_DAY} +\d+ +\d+ +\d+\n", log)  # rows that count, by table
    assert "audiobook_events: duplicate" in log


def test_a_task_has_its_documentation(page: Any, services: Services, shoot: Shoot):
    page.goto(f"{services.airflow}/dags/{DAG_ID}/tasks/validate")
    page.get_by_role("button", name="Documentation").click()
    documentation = page.get_by_role("dialog")
    documentation.get_by_text("What it does.").wait_for()
    assert "DQ-CRITICAL" in documentation.inner_text()
    shoot(page, "07-validate-docs")
    page.keyboard.press("Escape")


def test_data_docs_are_a_click_away_and_behind_the_login(
    page: Any, browser: Any, first_run: str, services: Services, shoot: Shoot
):
    open_task(page, services, first_run, "validate", "Details")
    button = page.get_by_role("link", name="Data Docs")
    button.wait_for()
    shoot(page, "08-validate-details")
    address = button.get_attribute("href")
    button.click()
    page.get_by_role("heading", name=f"Data quality of {FIRST_DAY}").wait_for()
    assert page.url == address
    shoot(page, "09-data-docs")
    checks = page.get_by_role("table").last
    assert "passed" in checks.inner_text()
    # Great Expectations' own pages, one click further, with nothing that the page may not load.
    failed = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.get_by_role("link", name="rows").first.click()
    page.get_by_text("Expectation Validation Result").wait_for()
    shoot(page, "10-data-docs-suite")
    assert failed == []
    # Nobody else may look.
    assert httpx.get(address, trust_env=False).status_code == 401
    stranger = browser.browser.new_context()
    try:
        outside = stranger.new_page()
        outside.goto(address)
        outside.locator("input[name=username]").wait_for()
        assert "Data quality" not in outside.content()
    finally:
        stranger.close()


def test_the_release_is_a_click_away(page: Any, first_run: str, services: Services, shoot: Shoot):
    verdict = services.result(first_run, "promote")["verdict"]
    assert "promoted" in verdict
    open_task(page, services, first_run, "promote")
    page.get_by_text(verdict).first.wait_for()
    shoot(page, "11-promote-log")
    page.get_by_role("link", name="Details", exact=True).click()
    with page.context.expect_page() as opened:  # another server's page gets a tab of its own
        page.get_by_role("link", name="MLflow version").click()
    version = opened.value
    for shown in (verdict.partition(" promoted")[2], "@ champion", FIRST_DAY.isoformat()):
        version.get_by_text(shown).first.wait_for()
    shoot(version, "12-mlflow-version")
    version.close()


def test_what_was_released_is_an_asset(page: Any, first_run: str, services: Services, shoot: Shoot):
    (event,) = services.client.asset_events("audiobook_release")
    assert event["extra"]["as_of"] == FIRST_DAY.isoformat()
    page.goto(f"{services.airflow}/assets")
    page.get_by_role("link", name="audiobook_release").first.click()
    page.get_by_text("1 Asset Event").first.wait_for()
    shoot(page, "13-asset")
