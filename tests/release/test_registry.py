"""The registry on a real MLflow: one version a date and fingerprint, aliases, holds; and on one that is away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from audiorec.errors import BadSettings, Busy, ExitCode, Unavailable
from audiorec.registry import CHALLENGER, CHAMPION, Hold, Registry, Version
from audiorec.settings import load_settings

DAY, NEXT_DAY = date(2026, 11, 22), date(2026, 11, 23)


def registry_at(uri: str, work: Path, model: str, seconds: float = 20.0) -> Registry:
    settings = load_settings(
        mlflow={"uri": uri, "experiment": f"of {model}", "timeout_seconds": seconds},
        release={"model_name": model},
        store={"uri": str(work / "store"), "scratch": str(work / "scratch")},
    )
    return Registry(settings)


@pytest.fixture
def registry(mlflow_uri: str, tmp_path: Path, request: pytest.FixtureRequest) -> Registry:
    """A registered model of the test's own."""
    return registry_at(mlflow_uri, tmp_path, request.node.name.replace("[", "-").replace("]", "-"))


def register(registry: Registry, as_of: date, fingerprint: str, work: Path, hit_rate: float = 0.4) -> Version:
    file = work / "release.json"
    file.write_text("{}")
    tags = {"hit_rate": f"{hit_rate:.6f}", "release": json.dumps({"as_of": str(as_of)})}
    return registry.register(as_of, fingerprint, tags, {"hit_rate_full_all": hit_rate}, [file])


def test_registering_twice_makes_one_version(registry: Registry, mlflow_client: MlflowClient, tmp_path: Path):
    first = register(registry, DAY, "aa", tmp_path)
    assert register(registry, DAY, "aa", tmp_path).number == first.number == "1"
    # Another fingerprint or another date is another version.
    assert register(registry, DAY, "bb", tmp_path).number == "2"
    assert register(registry, NEXT_DAY, "aa", tmp_path).number == "3"
    assert [(v.as_of, v.fingerprint) for v in registry.versions()] == [
        (NEXT_DAY, "aa"),
        (DAY, "bb"),
        (DAY, "aa"),
    ]
    assert len(mlflow_client.search_model_versions(f"name='{registry.name}'")) == 3


def test_a_version_is_what_was_registered(registry: Registry, mlflow_client: MlflowClient, tmp_path: Path):
    register(registry, DAY, "aa", tmp_path, hit_rate=0.4375)
    found = registry.find(DAY, "aa")
    assert found is not None
    assert (found.as_of, found.fingerprint, found.hit_rate) == (DAY, "aa", 0.4375)
    assert found.release == {"as_of": "2026-11-22"}
    assert not found.promoted
    assert not found.rejected
    assert registry.find(NEXT_DAY, "aa") is None
    run = mlflow_client.get_run(mlflow_client.get_model_version(registry.name, found.number).run_id)
    assert run.data.metrics == {"hit_rate_full_all": 0.4375}
    assert run.info.status == "FINISHED"
    assert [file.path for file in mlflow_client.list_artifacts(run.info.run_id, "release")] == [
        "release/release.json"
    ]


def test_an_answer_that_was_lost_makes_no_second_version(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The server made the version, its answer never came: the next try must find it."""
    make, lost = registry._client.create_model_version, []

    def make_and_lose(*arguments: Any, **named: Any) -> Any:
        made = make(*arguments, **named)
        if not lost:
            lost.append(made)
            raise MlflowException("connection reset")
        return made

    monkeypatch.setattr(registry._client, "create_model_version", make_and_lose)
    assert register(registry, DAY, "aa", tmp_path).number == lost[0].version == "1"
    assert len(registry.versions()) == 1


def test_aliases_point_and_move(registry: Registry, tmp_path: Path):
    assert registry.alias(CHAMPION) is None  # no such model yet
    one, two = register(registry, DAY, "aa", tmp_path), register(registry, NEXT_DAY, "bb", tmp_path)
    assert registry.alias(CHAMPION) is None  # no such alias yet
    registry.point(CHAMPION, one)
    registry.point(CHALLENGER, two)
    found = {name: registry.alias(name) for name in (CHAMPION, CHALLENGER)}
    assert {name: version and version.number for name, version in found.items()} == {
        CHAMPION: "1",
        CHALLENGER: "2",
    }
    registry.point(CHAMPION, two)
    moved = registry.alias(CHAMPION)
    assert moved is not None
    assert moved.as_of == NEXT_DAY


def test_the_verdict_is_on_the_version(registry: Registry, mlflow_client: MlflowClient, tmp_path: Path):
    version = register(registry, DAY, "aa", tmp_path)
    registry.record_verdict(version, "refused: worse", "fresh", "scheduled", promoted=False)
    found = registry.find(DAY, "aa")
    assert found is not None
    assert not found.promoted
    assert {key: found.tags[key] for key in ("verdict", "policy", "run_type")} == {
        "verdict": "refused: worse",
        "policy": "fresh",
        "run_type": "scheduled",
    }
    registry.record_verdict(version, "promoted: forced", "force", "manual", promoted=True)
    found = registry.find(DAY, "aa")
    assert found is not None
    assert found.promoted
    assert (
        mlflow_client.get_model_version(registry.name, version.number).description
        == found.tags["verdict"]
        == "promoted: forced"
    )


def test_a_hold_is_read_from_the_model(registry: Registry, mlflow_client: MlflowClient, tmp_path: Path):
    assert registry.hold() is None
    register(registry, DAY, "aa", tmp_path)
    assert registry.hold() is None
    # Words that somebody typed into MLflow hold, too, and have no end.
    mlflow_client.set_registered_model_tag(registry.name, "hold", "Ann: recall")
    held = registry.hold()
    assert held is not None
    assert (held.who, held.why, held.until) == ("by hand", "Ann: recall", None)
    end = datetime(2026, 12, 1, 12, tzinfo=UTC)
    made = Hold("ann@laptop", 'recall "dropped", ö', end - timedelta(days=7), end)
    registry.set_hold(made)
    assert registry.hold(end - timedelta(seconds=1)) == made
    assert registry.hold(end) is None
    assert made.line() == 'ann@laptop: recall "dropped", ö, until 2026-12-01 12:00 UTC'
    for _ in range(2):  # also when the first answer was lost
        registry.set_hold(None)
        assert registry.hold() is None


def test_nothing_to_hold_is_said(registry: Registry):
    with pytest.raises(BadSettings, match=rf"no registered model '{registry.name}'"):
        registry.set_hold(Hold("ann", "recall", datetime(2026, 12, 1, tzinfo=UTC), None))


def test_an_alias_is_taken_away_once_or_twice(registry: Registry, tmp_path: Path):
    registry.point(CHAMPION, register(registry, DAY, "aa", tmp_path))
    for _ in range(2):
        registry.point(CHAMPION, None)
        assert registry.alias(CHAMPION) is None


def test_a_rejection_says_who_and_why(registry: Registry, tmp_path: Path):
    registry.reject(register(registry, DAY, "aa", tmp_path), "ann", "empty shelves", datetime(2026, 12, 1))
    found = registry.get("1")
    assert found is not None
    assert found.rejected
    assert (found.tags["rejected_by"], found.tags["rejected_why"]) == ("ann", "empty shelves")
    assert registry.get("2") is None


def test_an_alias_on_somebody_elses_version_is_said(registry: Registry, mlflow_client: MlflowClient):
    mlflow_client.create_registered_model(registry.name)
    run = mlflow_client.create_run(mlflow_client.create_experiment(f"of {registry.name}"))
    mlflow_client.create_model_version(registry.name, f"runs:/{run.info.run_id}/model", run.info.run_id)
    mlflow_client.set_registered_model_alias(registry.name, CHAMPION, "1")
    assert registry.versions() == []
    with pytest.raises(
        BadSettings, match=r"version 1 has the alias 'champion' but no tag `as_of`.*take the alias"
    ):
        registry.alias(CHAMPION)


def test_one_mover_of_aliases_at_a_time(registry: Registry):
    busy = pytest.raises(Busy, match=rf"aliases of {registry.name} for 0 s")
    with registry.exclusive(), busy, registry.exclusive(0.01):
        pass
    with registry.exclusive(0.01):
        pass  # given back


# --- away ------------------------------------------------------------------------------------------------


def seconds_until_unavailable(registry: Registry) -> float:
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"\(mlflow\.uri\) did not answer for 1 s.*`audiorec up`") as caught:
        registry.versions()
    assert caught.value.exit_code == ExitCode.UNAVAILABLE == 69
    assert caught.value.retryable
    return time.monotonic() - started


def test_mlflow_down_is_unavailable_within_the_setting(tiny: Any, tmp_path: Path):
    assert seconds_until_unavailable(registry_at(tiny.no_mlflow, tmp_path, "m", 1.0)) < 6


def test_mlflow_that_hangs_is_unavailable_within_the_setting(tmp_path: Path):
    """It accepts connections and says nothing, as a server does whose database is locked."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert seconds_until_unavailable(registry_at(uri, tmp_path, "m", 1.0)) < 8


class Answer(BaseHTTPRequestHandler):
    """The same answer to every request."""

    code, body, asked = 503, '{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "starting"}', 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.code)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body.encode())

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[tuple[str, type[Answer]]]:
    handler = type("Answering", (Answer,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_server_that_is_starting_is_asked_again(code: int, answering: Any, tmp_path: Path):
    uri, handler = answering
    handler.code = code
    seconds_until_unavailable(registry_at(uri, tmp_path, "m", 1.0))
    assert handler.asked > 1


def test_a_hold_that_cannot_be_read_is_not_no_hold(answering: Any, tmp_path: Path):
    uri, handler = answering
    with pytest.raises(Unavailable):
        registry_at(uri, tmp_path, "m", 0.5).hold()
    handler.code, handler.body = 403, '{"error_code": "PERMISSION_DENIED", "message": "not yours"}'
    with pytest.raises(RestException, match="PERMISSION_DENIED"):
        registry_at(uri, tmp_path, "m", 0.5).hold()


def test_an_answer_that_is_no_is_not_asked_for_again(answering: Any, tmp_path: Path):
    uri, handler = answering
    handler.code, handler.body = 400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "no such filter"}'
    with pytest.raises(RestException, match="no such filter"):
        registry_at(uri, tmp_path, "m", 5.0).versions()
    assert handler.asked == 1
