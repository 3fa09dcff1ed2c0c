"""Fixtures of the tests that look at real services: a finished run, a browser, a page that has logged in.

A folder of such tests brings `services` itself: one stack, over its own tables.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ui_services import ARGUMENTS, CHROMIUM, PATIENCE_MS, Services

from audiorec.stack.layout import DAG_ID


@pytest.fixture(scope="module")
def first_run(services: Services) -> str:
    """Id of a run of the first day that has succeeded; the browser's if it triggered one."""
    if "first" not in services.runs:
        params = {"as_of": services.first_day.isoformat(), "profile": "smoke"}
        services.runs["first"] = services.client.trigger(DAG_ID, params).run_id
        services.client.unpause(DAG_ID)
    run = services.wait(services.runs["first"])
    assert run.state == "success", services.states(run.run_id)
    return run.run_id


@pytest.fixture(scope="session")
def shoot(screenshots: list[Path]) -> Callable[[Any, str], None]:
    """Take a screenshot of a page, for people to look at."""

    def take(page: Any, name: str, **options: Any) -> None:
        page.wait_for_timeout(400)  # dialogs fade in
        target = screenshots[0] / f"{name}.png"
        page.screenshot(path=target, **options)
        for folder in screenshots[1:]:
            shutil.copy(target, folder)

    return take


@pytest.fixture(scope="session")
def chromium() -> str:
    if CHROMIUM is None:
        pytest.fail("CI=true, but there is no Chromium on the PATH; .ci/run installs it")
    return CHROMIUM


@pytest.fixture(scope="module")
def browser(chromium: str, services: Services) -> Iterator[Any]:
    """A browser context with an English clock, so that a date can be typed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A proxy of the environment must not be asked for our own machine.
        program = playwright.chromium.launch(
            executable_path=chromium, args=[*ARGUMENTS, "--proxy-server=direct://"]
        )
        context = program.new_context(
            viewport={"width": 1400, "height": 1000}, locale="en-US", timezone_id="UTC"
        )
        context.set_default_timeout(PATIENCE_MS)
        yield context
        program.close()


@pytest.fixture(scope="module")
def page(browser: Any, services: Services, shoot: Callable[[Any, str], None]) -> Any:
    """A page whose person has logged in by the form."""
    page = browser.new_page()
    page.goto(services.airflow)
    page.locator("input[name=username]").fill(services.account.user)
    page.locator("input[name=password]").fill(services.account.password)
    shoot(page, "01-login")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("Active Dags").wait_for()
    return page
