"""The rollback's form in a real browser, as somebody on call fills it in; and the daily run that follows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from ui_services import BROWSER_MARKS, PATIENCE_SECONDS, Services

from audiorec.registry import Registry
from audiorec.release import ReleaseControl
from audiorec.stack.layout import DAG_ID

# The first limit of time counts: this test waits for a second daily run.
pytestmark = [pytest.mark.long, pytest.mark.timeout(2 * PATIENCE_SECONDS), *BROWSER_MARKS]

ROLLBACK_DAG = "audiobook_rollback"


def test_a_rollback_by_the_form_takes_a_minute_and_the_next_daily_run_does_not_undo_it(
    page: Any, services: Services, first_run: str, shoot: Callable[..., None]
):
    registry, good = Registry(services.settings), services.champion()
    bad = registry.register(
        services.first_day + timedelta(days=1),
        "the-bad-one",
        {"release": good.tags["release"], "hit_rate": "0.5"},
        {},
        [],
    )
    registry.record_verdict(bad, "registered: promote is `never`", "never", "manual", promoted=False)
    ReleaseControl(services.settings).promote(bad.number, why="looked well", who="somebody")
    assert services.champion().number == bad.number

    page.goto(f"{services.airflow}/dags/{ROLLBACK_DAG}")
    page.get_by_role("button", name="Trigger").click()
    form = page.get_by_role("dialog")
    form.locator("#element_reason").fill("empty shelves")
    shoot(page, "31-rollback-form")
    clicked = time.monotonic()
    form.get_by_role("button", name="Trigger").click()
    form.wait_for(state="hidden")
    while services.champion().number == bad.number:
        assert time.monotonic() - clicked < 60, "a minute after the click the bad version still serves"
        time.sleep(0.2)
    print(f"\nback to version {good.number} {time.monotonic() - clicked:.1f} s after the click")
    assert services.champion().number == good.number
    assert services.versions()[bad.number].rejected
    page.get_by_text("champion rolled back").or_(page.get_by_text("success")).first.wait_for()
    shoot(page, "32-rollback-triggered")

    # A daily run of a newer date, which would have become champion but for the rollback's hold.
    params = {"as_of": (services.first_day + timedelta(days=2)).isoformat(), "profile": "smoke"}
    run = services.wait(services.client.trigger(DAG_ID, params).run_id)
    assert run.state == "success", services.states(run.run_id)
    verdict = services.result(run.run_id, "promote")["verdict"]
    assert "registered: the alias is held" in verdict, verdict
    assert services.champion().number == good.number
    registry.set_hold(None)
