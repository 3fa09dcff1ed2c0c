"""Rollback, rejection and hold on a real MLflow, over small releases of a real store; and what kills leave behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from audiorec import release
from audiorec.champion import describe, read_pointer
from audiorec.cli import app
from audiorec.errors import BadSettings, Corrupt
from audiorec.history import Entry, History, Recorded, VersionRef
from audiorec.launcher import FinalFailure, run_rollback
from audiorec.registry import CHALLENGER, CHAMPION, Hold, Registry
from audiorec.release import ReleaseControl
from audiorec.settings import Settings, load_settings
from audiorec.store import Store

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("elsewhere")]

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@dataclass
class Shop:
    """A store and a registered model with one version a day: 1 of 11-18, 2 of 11-19, ..., each promoted in turn."""

    settings: Settings
    time: list[datetime] = field(default_factory=lambda: [NOON])

    @property
    def control(self) -> ReleaseControl:
        return ReleaseControl(self.settings, lambda: self.time[0])

    @property
    def registry(self) -> Registry:
        return Registry(self.settings)

    @property
    def store(self) -> Store:
        return Store(self.settings.store.uri, self.settings.store.scratch)

    def add(self, day: int, promoted: bool = True, verdict: str = "promoted: fine") -> str:
        """Register a release of a day, with a file of its own, and promote it as `promote` does."""
        as_of, fingerprint = date(2026, 11, day), f"feed{day}"
        with self.store.working_folder() as folder:
            (folder / "vectors.bin").write_text(f"vectors of {day}")
            manifest = self.store.commit(
                dataset="refresh",
                key=str(as_of),
                fingerprint=fingerprint,
                outputs={"vectors.bin": folder / "vectors.bin"},
                inputs={},
                settings={},
                code="",
                facts={},
            )
        tags = {"release": json.dumps(describe(as_of, {"refresh": manifest})), "hit_rate": "0.4"}
        control = self.control
        with control.exclusive():
            version = control.registry.register(as_of, fingerprint, tags, {}, [])
            if promoted:
                control.move(CHAMPION, version, "promote", "the schedule", "scheduled run", verdict)
            control.registry.record_verdict(version, verdict, "fresh", "scheduled", promoted)
        return version.number

    def champion(self) -> str | None:
        """Number of the champion; alias and pointer must agree."""
        version, pointed = self.registry.alias(CHAMPION), read_pointer(self.store, self.registry.name)
        assert (version.number if version else None) == (pointed[0] if pointed else None)
        return version.number if version else None

    def history(self) -> list[Recorded]:
        return list(History(self.store, self.registry.name).newest_first())

    def moves(self) -> list[tuple[str, str | None, str | None]]:
        """What moved the champion, oldest first."""
        found = [r.entry for r in self.history() if r.entry.alias == CHAMPION and r.outcome == "done"]
        return [
            (e.action, e.before and e.before.version, e.after and e.after.version) for e in reversed(found)
        ]


@pytest.fixture
def shop(mlflow_uri: str, tmp_path: Path, request: pytest.FixtureRequest) -> Shop:
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)
    settings = load_settings(
        mlflow={"uri": mlflow_uri, "experiment": f"of {name}", "timeout_seconds": 20.0},
        release={"model_name": name},
        store={"uri": str(tmp_path / "store"), "scratch": str(tmp_path / "scratch")},
        services={"home": str(tmp_path / "home")},
    )
    return Shop(settings)


def test_a_rollback_moves_rejects_and_holds_at_once(shop: Shop):
    for day in (18, 19, 20):
        shop.add(day)
    done = shop.control.rollback(why="empty shelves", who="ann", hold_days=2)
    assert (done.before.version, done.after, done.already) == ("3", VersionRef("2", "2026-11-19"), False)
    assert shop.champion() == "2"
    bad = shop.registry.get("3")
    assert bad is not None
    assert bad.rejected
    assert (bad.tags["rejected_by"], bad.tags["rejected_why"]) == ("ann", "empty shelves")
    hold = shop.registry.hold(NOON)
    assert hold == Hold("ann", "empty shelves", NOON, NOON + timedelta(days=2))
    newest = shop.history()[0]
    assert newest.outcome == "done"
    assert newest.entry == Entry(
        "rollback",
        "2026-11-23T12:00:00+00:00",
        "ann",
        "empty shelves",
        CHAMPION,
        VersionRef("3", "2026-11-20"),
        VersionRef("2", "2026-11-19"),
        until="2026-11-25T12:00:00+00:00",
    )
    # Once more, and there is one further back; then nothing is left, and nothing changes.
    assert shop.control.rollback(why="still", who="ann").after.version == "1"
    with pytest.raises(BadSettings, match=r"no version is left to go back to from version 1 \(2026-11-18\)"):
        shop.control.rollback(why="still", who="ann")
    assert shop.champion() == "1"
    assert shop.moves() == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("promote", "2", "3"),
        ("rollback", "3", "2"),
        ("rollback", "2", "1"),
    ]


def test_the_last_good_one_is_whole_promoted_and_not_rejected(shop: Shop):
    """Of 11-18 to 11-23: 23 serves; 22 was never promoted, 21 is damaged, 20 rejected, 19 is good, 18 is older."""
    for day in (18, 19, 20, 21):
        shop.add(day)
    shop.add(22, promoted=False, verdict="registered: held")
    shop.add(23)
    shop.control.reject("3", why="biased", who="bob")
    folder = Path(shop.store.root) / "refresh" / "2026-11-21" / "feed21"
    next(folder.glob("vectors*.bin")).write_text("vectors of 2I")
    done = shop.control.rollback(why="slow", who="ann")
    assert done.after.version == "2"
    [note] = done.notes
    assert re.search(r"version 4 \(2026-11-21\) was passed over: .*altered or damaged", note)


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("9", "has no version '9' that promote made; the newest are 4, 3, 2, 1"),
        ("4", "is the champion itself"),
        ("2", "was rejected and is never eligible again"),
        ("3", "was refused by the gate"),
    ],
)
def test_a_named_version_must_be_fit(shop: Shop, to: str, said: str):
    shop.add(18), shop.add(19)
    shop.control.rollback(why="bad", who="ann")
    shop.add(20, promoted=False, verdict="refused: worse")
    shop.add(21)
    before = shop.history()
    with pytest.raises(BadSettings, match=said):
        shop.control.rollback(to=to, why="x", who="ann")
    assert shop.champion() == "4"
    assert shop.history() == before


def test_a_named_version_may_be_older_or_never_promoted_but_not_newer_or_damaged(shop: Shop):
    shop.add(18, promoted=False, verdict="registered: a backfill")
    shop.add(19), shop.add(20)
    later = shop.add(22, promoted=False, verdict="registered: held")
    with pytest.raises(BadSettings, match=r"is of a later date than the champion \(2026-11-20\)"):
        shop.control.rollback(to=later, why="x", who="ann")
    folder = Path(shop.store.root) / "refresh" / "2026-11-19" / "feed19"
    next(folder.glob("vectors*.bin")).unlink()
    with pytest.raises(Corrupt, match="is missing"):
        shop.control.rollback(to="2", why="x", who="ann")
    assert shop.champion() == "3"
    assert shop.control.rollback(to="1", why="x", who="ann").after.version == "1"
    assert shop.champion() == "1"


def test_without_a_champion_or_with_another_than_expected_nothing_happens(shop: Shop):
    with pytest.raises(BadSettings, match="has no champion"):
        shop.control.rollback(why="x", who="ann")
    shop.add(18), shop.add(19)
    with pytest.raises(BadSettings, match=r"the champion is version 2 \(2026-11-19\), not 1: it was moved"):
        shop.control.rollback(expected="1", why="x", who="ann")
    assert shop.control.rollback(expected="2", why="x", who="ann").after.version == "1"


def test_the_same_request_is_answered_once(shop: Shop):
    """Airflow tries the task again after its answer was lost, or somebody clears the run."""
    for day in (18, 19, 20):
        shop.add(day)
    first = shop.control.rollback(why="bad", who="ann", request="audiobook_rollback/manual__1")
    again = shop.control.rollback(why="bad", who="ann", request="audiobook_rollback/manual__1")
    assert (again.before, again.after, again.until) == (first.before, first.after, first.until)
    assert (first.already, again.already) == (False, True)
    assert shop.champion() == "2"
    assert (
        shop.control.rollback(why="bad", who="ann", request="audiobook_rollback/manual__2").after.version
        == "1"
    )


class Killed(BaseException):
    """No error of ours: nothing may catch it."""


STEPS = ("set_hold", "reject", "point", "write_pointer", "finish")


@pytest.mark.parametrize("lost", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_is_finished_by_the_next_command(
    step: str, lost: bool, shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    """Killed just before a step, or just after it: the rollback is carried out once, and the good version stays."""
    for day in (18, 19, 20):
        shop.add(day)
    owner: Any = {"write_pointer": release.released, "finish": History}.get(step, Registry)
    real: Callable[..., Any] = getattr(owner, step)

    def kill(*arguments: Any, **named: Any) -> Any:
        if lost:
            real(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, kill)
        with pytest.raises(Killed):
            shop.control.rollback(why="bad", who="ann")
    # The next one is somebody else, an hour later; a rollback asked for again moves nothing twice.
    shop.time[0] += timedelta(hours=1)
    answered = shop.control.rollback(why="bad", who="ann")
    if step == "finish" and lost:
        # It was all done, and written down as done: asking again is asking for another one.
        assert (answered.already, answered.after.version) == (False, "1")
        return
    assert (answered.already, answered.before.version, answered.after.version) == (True, "3", "2")
    assert shop.champion() == "2"
    assert [r.outcome for r in shop.history()].count(None) == 0
    assert shop.moves()[-1] == ("rollback", "3", "2")
    rejected = [v.number for v in shop.registry.versions() if v.rejected]
    assert rejected == ["3"]
    hold = shop.registry.hold(NOON)
    assert hold is not None
    assert hold.since == NOON  # the hold of the one who asked, not of the one who finished


def test_an_answer_of_mlflow_that_is_lost_makes_one_move(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    shop.add(18), shop.add(19)
    real, lost = MlflowClient.set_registered_model_alias, []

    def move_and_lose(self: MlflowClient, *arguments: Any) -> None:
        real(self, *arguments)
        if not lost:
            lost.append(arguments)
            raise MlflowException("connection reset")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", move_and_lose)
    shop.control.rollback(why="bad", who="ann")
    assert lost
    assert shop.champion() == "1"
    assert shop.moves()[-1] == ("rollback", "2", "1")


def test_a_promotion_that_was_killed_before_the_alias_moved_is_told_as_such(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    shop.add(18)
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "point", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            shop.add(19)
    with shop.control.exclusive():
        pass
    assert [(r.entry.action, r.outcome) for r in shop.history()] == [
        ("promote", "not done"),
        ("promote", "done"),
    ]
    assert shop.champion() == "1"


def test_a_move_by_hand_is_found_and_recorded(shop: Shop, mlflow_client: MlflowClient):
    shop.add(18), shop.add(19)
    mlflow_client.set_registered_model_alias(shop.registry.name, CHAMPION, "1")
    for _ in range(2):  # found once
        with shop.control.exclusive():
            pass
    assert shop.moves()[-2:] == [("promote", "1", "2"), ("found", "2", "1")]
    assert "moved outside of audiorec" in shop.history()[0].entry.why


def test_a_champion_from_before_the_record_is_its_first_entry(shop: Shop):
    shop.add(18)
    for file in (Path(shop.store.root) / f"history-{shop.registry.name}").iterdir():
        file.unlink()
    shop.add(19)
    assert shop.moves() == [("found", None, "1"), ("promote", "1", "2")]


def test_a_challenger_that_is_rejected_loses_its_alias(shop: Shop):
    shop.add(18)
    number = shop.add(19, promoted=False, verdict="refused: worse")
    control = shop.control
    with control.exclusive():
        version = control.registry.get(number)
        assert version is not None
        control.move(CHALLENGER, version, "promote", "the schedule", "scheduled run", "refused: worse")
    shop.control.reject(number, why="biased", who="bob")
    assert shop.registry.alias(CHALLENGER) is None
    with pytest.raises(BadSettings, match=r"version 1 .* is the champion; `audiorec rollback` rejects it"):
        shop.control.reject("1", why="x", who="bob")
    # Said once, however often it is asked.
    before = len(shop.history())
    shop.control.reject(number, why="biased", who="bob")
    assert len(shop.history()) == before


def test_holds(shop: Shop):
    shop.add(18), shop.add(19)
    until = NOON + timedelta(days=30)
    shop.control.hold(why="audit", who="bob", until=until)
    # A rollback never shortens it.
    shop.control.rollback(why="bad", who="ann", hold_days=1)
    held = shop.registry.hold(NOON)
    assert held is not None
    assert (held.who, held.until) == ("bob", until)
    shop.control.hold(why="longer", who="bob", until=None)
    held = shop.registry.hold(NOON + timedelta(days=9999))
    assert held is not None
    assert held.until is None
    released = shop.control.release_hold(why="done", who="bob")
    assert released is not None
    assert released.why == "longer"
    assert shop.registry.hold(NOON) is None
    assert shop.control.release_hold(why="done", who="bob") is None
    assert [r.entry.action for r in shop.history()][:4] == ["release_hold", "hold", "rollback", "hold"]
    with pytest.raises(BadSettings, match="which is over"):
        shop.control.hold(why="x", who="bob", until=NOON)
    with pytest.raises(BadSettings, match="hold days are -1"):
        shop.control.rollback(why="x", who="bob", hold_days=-1)


def test_a_damaged_entry_is_named(shop: Shop):
    shop.add(18)
    folder = Path(shop.store.root) / f"history-{shop.registry.name}"
    path = folder / "000001.json"
    for text, said in (("{", "is not readable"), ('{"format": 2}', "has format 2, this version reads 1")):
        path.unlink()
        path.write_text(text)
        with pytest.raises(Corrupt, match=rf"history-.*000001\.json {said}"):
            shop.history()


# --- the command line and the launcher -------------------------------------------------------------------


@pytest.fixture
def environment(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    for group in ("store", "services", "mlflow"):
        monkeypatch.setenv(
            f"AUDIOREC_{group.upper()}", json.dumps(getattr(shop.settings, group).model_dump())
        )
    monkeypatch.setenv("AUDIOREC_RELEASE__MODEL_NAME", shop.settings.release.model_name)
    port = shop.settings.mlflow.uri.rsplit(":", 1)[1]
    monkeypatch.setenv(
        "AUDIOREC_SERVICES", json.dumps({"home": shop.settings.services.home, "mlflow_port": int(port)})
    )
    return shop


def call(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, list(arguments))


def test_on_the_command_line(environment: Shop):
    assert "nothing was ever promoted" in call("history").output
    environment.add(18), environment.add(19)
    done = call("rollback", "--reason", "empty shelves [/red]", "--hold-days", "3", "--expect", "2")
    assert done.exit_code == 0, done.output
    assert "champion rolled back from version 2 (2026-11-19) to 1 (2026-11-18)" in done.output
    assert environment.champion() == "1"
    twice = call("rollback", "--expect", "2")
    assert twice.exit_code == 78
    assert "it was moved already" in twice.stderr
    said = call("history").output
    for part in (
        "rollback (champion)",
        "2 (2026-11-19)",
        "1 (2026-11-18)",
        "empty shelves",
        release.operator(),
    ):
        assert part in said, part
    assert "held: " in call("hold").output
    collected = call("gc", "--each")
    assert collected.exit_code == 0, collected.output
    assert "0 thing(s) of 0.0 MB could go; 2 version(s)" in collected.output
    assert "no longer held (" in call("hold", "--clear").output
    assert "nothing is held" in call("hold").output
    assert "until it is taken back" in call("hold", "--reason", "audit").output
    assert call("hold", "--days", "1", "--until", "2099-01-01").exit_code == 78
    assert "until 2099-01-02 00:00 UTC" in call("hold", "--until", "2099-01-01").output
    assert "version 3" in call("reject", "3").stderr or call("reject", "3").exit_code == 78


def test_through_the_launcher_in_somebodys_name(environment: Shop):
    """What the DAG's task does: a process of its own; the reason is a word, whatever it looks like."""
    environment.add(18), environment.add(19)
    lines: list[str] = []
    asked: dict[str, Any] = {"who": "ann (Airflow)", "request": "audiobook_rollback/r1", "emit": lines.append}
    done = run_rollback(environment.settings, reason="--to 9; rm -rf $HOME", hold_days=0.5, **asked)
    assert (done.state, done.as_of) == ("done", "2026-11-18")
    assert done.verdict is not None
    assert done.verdict.startswith("champion rolled back from version 2 (2026-11-19) to 1 (2026-11-18)")
    entry = environment.history()[0].entry
    assert (entry.who, entry.why) == ("ann (Airflow)", "--to 9; rm -rf $HOME")
    again = run_rollback(environment.settings, reason="x y", **asked)
    assert again.state == "up_to_date"
    assert environment.champion() == "1"
    with pytest.raises(FinalFailure, match=r"\[BAD-SETTINGS\] rollback was given a wrong setting") as failed:
        run_rollback(environment.settings, reason="again", who="ann", to="77", emit=lines.append)
    assert "has no version '77'" in str(failed.value)
