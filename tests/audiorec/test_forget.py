"""Forgetting: the tombstone, the receipt, what still holds the user, and a service's view of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from small_source import AS_OF, clean_tables, settings_for, write_flat

from audiorec.errors import BadSettings
from audiorec.forget import RECEIPTS, Forgotten, forget, holdings, holdings_by_user, tombstone_since
from audiorec.pseudonyms import Pseudonyms, forgotten
from audiorec.runner import run_task
from audiorec.settings import Settings
from audiorec.store import Store

NOON = datetime(2026, 2, 11, 12, tzinfo=UTC)


@pytest.fixture
def built(tmp_path: Path) -> Settings:
    """An extract of the small tables, users by pseudonym."""
    settings = settings_for(
        write_flat(clean_tables(), tmp_path / "source"), tmp_path, privacy={"user_ids": "pseudonyms"}
    )
    run_task("extract", settings, AS_OF)
    return settings


def store_of(settings: Settings) -> Store:
    return Store(settings.store.uri, settings.store.scratch)


def test_the_receipt_lists_all_that_held_the_user_and_a_rebuild_holds_nothing(built: Settings):
    receipt = forget(built, "u7", NOON)
    store = store_of(built)
    assert receipt.pseudonym == Pseudonyms.of(built).name("u7") and receipt.since == NOON
    assert receipt.collected_until == NOON + timedelta(days=30)
    extracts = [one for one in receipt.holdings if one.dataset == "extract"]
    assert [set(one.files) for one in extracts] == [
        {"users.parquet", "first_streamed.parquet", "first_signal.parquet", "first_seen.parquet"}
    ]
    # u7 has an event on each of the 25 days of the window; every day partition and the extract were looked at.
    assert {one.dataset for one in receipt.holdings} == {"extract", "interactions"}
    assert receipt.checked == len(store.keys("interactions")) + 1

    before = holdings(store)
    assert before == sorted(before, key=lambda one: (one.dataset, one.key)) and before == list(
        receipt.holdings
    )
    fresh = run_task("extract", built, AS_OF)
    after = {(one.dataset, one.key, one.fingerprint) for one in holdings(store)}
    assert after == {(one.dataset, one.key, one.fingerprint) for one in before}, "nothing new holds the user"
    assert ("extract", AS_OF.isoformat(), fresh["fingerprint"]) not in after

    [record] = store.record_names(RECEIPTS)
    written = json.loads(store.read_record(RECEIPTS, record))
    assert written["checked"] == receipt.checked and "replaced by the next training" in written["weights"]
    assert "u7" not in store.read_record(RECEIPTS, record).decode().replace(receipt.pseudonym, "")


def test_forgetting_twice_keeps_the_first_date(built: Settings):
    forget(built, "u7", NOON)
    again = forget(built, " u7 ", NOON + timedelta(days=9))
    assert again.since == NOON == tombstone_since(store_of(built), again.pseudonym)
    assert len(forgotten(store_of(built))) == 1 and len(store_of(built).record_names(RECEIPTS)) == 2


def test_holdings_are_told_apart_by_user(built: Settings):
    store = store_of(built)
    seven, nobody = (forget(built, user, NOON).pseudonym for user in ("u7", "nobody"))
    found = holdings_by_user(store)
    assert list(found) == sorted([seven, nobody]) and found[nobody] == []
    assert found[seven] == holdings(store, frozenset({seven})) == holdings(store)


def test_a_user_who_is_nowhere_can_be_forgotten_in_advance(built: Settings):
    assert forget(built, "not yet a user", NOON).holdings == ()
    assert len(forgotten(store_of(built))) == 1


@pytest.mark.parametrize(
    ("user_ids", "user"), [("pseudonyms", "  "), ("as_given", "../etc"), ("as_given", "a b")]
)
def test_ids_that_cannot_be(user_ids: str, user: str, tmp_path: Path):
    settings = settings_for(tmp_path, tmp_path, privacy={"user_ids": user_ids})
    with pytest.raises(BadSettings, match="the id to forget"):
        forget(settings, user)


def test_a_service_sees_it_within_its_interval_and_keeps_what_it_saw(
    built: Settings, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    asked = Forgotten(built, seconds=5, clock=lambda: now[0])
    assert not asked("u7")
    name = forget(built, "u7", NOON).pseudonym
    now[0] = 5.0
    assert asked("u7") and asked(name) and not asked("u8")

    def broken(*_: object) -> list[str]:
        raise OSError("the store is away")

    monkeypatch.setattr(Store, "keys", broken)
    now[0] = 20.0
    assert asked("u7") and not asked("u8")
