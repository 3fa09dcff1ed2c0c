"""One real stack for the tests of this folder: Airflow and MLflow on free ports over the tiny tables.

A date costs about a minute of two cores, so the runs are made once and every test looks at them: the first
one by whoever comes first (the browser's form, or the API where there is no browser), the others beside each
other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ui_services import ARGUMENTS, CHROMIUM, FIRST_DAY, KILLED_EPOCHS, PATIENCE_MS, Services

from audiorec import stack
from audiorec.settings import as_toml, load_settings
from audiorec.stack.client import AirflowClient
from audiorec.stack.layout import DAG_ID
from audiorec.stack.servers import free_ports


@pytest.fixture(scope="session")
def services(tiny: Any, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    home = tmp_path_factory.mktemp("ui")
    airflow_port, mlflow_port, serving_port = free_ports(3)
    wanted = tiny.settings(
        tiny_source,
        home,
        store={"checkpoint_seconds": 0.2},
        services={
            "home": str(home),
            "airflow_port": airflow_port,
            "mlflow_port": mlflow_port,
            "serving_port": serving_port,
        },
        mlflow={"uri": f"http://127.0.0.1:{mlflow_port}"},
        hgnn={"max_epochs": KILLED_EPOCHS, "patience": KILLED_EPOCHS},
    )
    file = home / "settings.toml"
    file.write_text(as_toml(wanted), encoding="utf-8")
    settings = load_settings(file)
    running = stack.start(settings, settings_file=file, say=lambda _: None)
    try:
        account = stack.login(settings)
        with AirflowClient(running.airflow, account.user, account.password) as client:
            yield Services(settings, file, running.airflow, account, client)
    finally:
        stack.stop(settings, say=lambda _: None)


@pytest.fixture(scope="module")
def first_run(services: Services) -> str:
    """Id of a run of FIRST_DAY that has succeeded; the browser's if it triggered one."""
    if "first" not in services.runs:
        params = {"as_of": FIRST_DAY.isoformat(), "profile": "smoke"}
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
