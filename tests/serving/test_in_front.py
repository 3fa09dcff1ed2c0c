"""The gate in front of the routes, keys, rates, batches and lists of ids: each alone, without a release."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from audiorec.errors import BadSettings
from audiorec.recommend import Asked
from audiorec.settings import KEYS_VARIABLE, Serving, load_settings
from audiorec.stack.layout import Layout, write_private
from audiorec.withheld import IdFile, Withheld
from serving.batching import Batcher, Overloaded
from serving.keys import Keys, Limiter, load_keys
from serving.metrics import Metrics
from serving.middleware import Gate

KEY = "a-key-of-sixteen-or-more"


def call(gate: Gate, receive: Any, headers: Sequence[tuple[bytes, bytes]] = ()) -> tuple[int, dict[str, Any]]:
    """Status and body of one request through the gate."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/recommendations",
        "headers": [(b"x-api-key", KEY.encode()), *headers],
    }
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(one.get("body", b"") for one in sent[1:]))


def gate_of(app: Any, **settings: Any) -> Gate:
    own = Serving(**settings)
    return Gate(app, own, Keys({"me": KEY}), Limiter(own.requests_per_second, own.burst), Metrics())


async def echo(_: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_a_body_in_pieces_arrives_whole():
    pieces = [b'{"a"', b": 1", b"}"]

    async def receive() -> Any:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    assert call(gate_of(echo), receive) == (200, {"a": 1})


def test_a_slow_body_and_a_slow_answer_are_given_up():
    async def slow(*_: Any) -> Any:
        await asyncio.sleep(30)

    status, said = call(gate_of(echo, timeout_seconds=0.05), slow)
    assert (status, said["detail"]) == (408, "the body did not come within 0.05 s")

    async def empty() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    status, said = call(gate_of(slow, timeout_seconds=0.05), empty)
    assert (status, said["detail"]) == (504, "no answer within 0.05 s; try again later")


def test_a_length_that_is_stated_is_believed_before_a_byte_is_read():
    async def never() -> Any:
        raise AssertionError("the body was read")

    status, _ = call(gate_of(echo, max_body_kb=1), never, [(b"content-length", b"1025")])
    assert status == 413


def test_an_error_in_a_route_says_nothing_of_the_request(caplog: pytest.LogCaptureFixture):
    async def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    async def secret() -> Any:
        return {"type": "http.request", "body": b"u-secret", "more_body": False}

    status, said = call(gate_of(broken), secret)
    assert status == 500
    assert "a bug" not in said["detail"]
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert record.getMessage().split()[1] in said["detail"]
    assert "u-secret" not in caplog.text
    assert KEY not in caplog.text


# --- keys ------------------------------------------------------------------------------------------------


def test_keys_from_the_environment_or_the_file(tmp_path: Path):
    settings = load_settings(services={"home": str(tmp_path)})
    layout = Layout.of(settings)
    with pytest.raises(BadSettings, match=f"no API key: set {KEYS_VARIABLE}"):
        load_keys(settings, {})
    layout.make()
    write_private(layout.serving_keys, json.dumps({"demo": KEY}))
    assert load_keys(settings, {}) == {"demo": KEY}
    given = load_keys(settings, {KEYS_VARIABLE: f"home:{KEY}1, search:{KEY}2"})
    assert given == {"home": f"{KEY}1", "search": f"{KEY}2"}
    with pytest.raises(BadSettings, match="keys of home in AUDIOREC_API_KEYS are shorter than 16"):
        load_keys(settings, {KEYS_VARIABLE: "home:short"})
    with pytest.raises(BadSettings, match="must be name:key"):
        load_keys(settings, {KEYS_VARIABLE: KEY})
    layout.serving_keys.write_text("[]")
    with pytest.raises(BadSettings, match="is not a JSON object"):
        load_keys(settings, {})
    layout.serving_keys.unlink()
    assert (
        load_keys(load_settings(services={"home": str(tmp_path)}, serving={"require_key": False}), {}) == {}
    )


def test_who_holds_a_key():
    keys = Keys({"home": KEY + "1", "search": KEY + "2"})
    assert keys.holder(KEY + "2") == "search"
    for wrong in ("", KEY, KEY + "3", KEY + "\udcff"):
        assert keys.holder(wrong) is None
    assert not Keys({})


def test_a_bucket_of_three_that_fills_by_two_a_second():
    """At 0 s three pass and the fourth waits 1/2 s; at 1 s two more pass; a batch larger than the bucket may run once."""
    limiter = Limiter(2.0, 3)
    assert [limiter.wait("me", now=0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limiter.wait("you", now=0.0) == 0.0
    assert [limiter.wait("me", now=1.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    assert limiter.wait("me", cost=9, now=10.0) == 0.0
    assert limiter.wait("me", now=10.0) == pytest.approx((1 + 6) / 2)


# --- batches ---------------------------------------------------------------------------------------------


def test_what_waits_is_done_together_and_everybody_gets_their_own():
    started, go, batches = threading.Event(), threading.Event(), []

    def do(work: Sequence[int]) -> list[int | BaseException]:
        batches.append(list(work))
        started.set()
        go.wait(10)
        return [ValueError(f"no {one}") if one == 3 else one * one for one in work]

    async def run() -> list[Any]:
        batcher: Batcher[int, int] = Batcher(do, workers=1, max_batch=4, max_waiting=6)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.to_thread(started.wait, 10)
        rest = [asyncio.create_task(batcher.submit(one)) for one in range(1, 7)]
        await asyncio.sleep(0.05)
        assert batcher.waiting == 6
        with pytest.raises(Overloaded):
            await batcher.submit(9)
        rest[4].cancel()  # its client left: nothing is done for it
        go.set()
        found = await asyncio.gather(first, *rest, return_exceptions=True)
        await asyncio.to_thread(batcher.close)
        return found

    found = asyncio.run(run())
    assert [one for one in found if isinstance(one, int)] == [0, 1, 4, 16, 36]
    assert str(found[3]) == "no 3"
    assert isinstance(found[5], asyncio.CancelledError)
    assert batches == [[0], [1, 2, 3, 4], [6]]


def test_a_bug_in_the_work_reaches_all_of_its_batch():
    def broken(_: Sequence[int]) -> list[int | BaseException]:
        raise KeyError("a bug")

    async def run() -> list[Any]:
        batcher: Batcher[int, int] = Batcher(broken, workers=2, max_batch=8, max_waiting=8)
        found = await asyncio.gather(*(batcher.submit(one) for one in range(5)), return_exceptions=True)
        await asyncio.to_thread(batcher.close)
        return list(found)

    assert {type(one) for one in asyncio.run(run())} == {KeyError}


# --- hidden and forgotten --------------------------------------------------------------------------------


def test_a_list_of_ids_is_read_again_when_it_changes(tmp_path: Path):
    path, now = tmp_path / "ids", [0.0]
    with pytest.raises(BadSettings, match=r"serving.hidden_file is .*, which cannot be read"):
        IdFile(str(path), "serving.hidden_file")
    path.write_text("# a comment\n a1 \n\na2\n")
    ids = IdFile(str(path), "serving.hidden_file", clock=lambda: now[0])
    assert ids.ids() == {"a1", "a2"}
    path.write_text("a3\n")
    assert ids.ids() == {"a1", "a2"}  # looked at a moment ago
    now[0] = 1.0
    assert ids.ids() == {"a3"}
    path.unlink()
    now[0] = 2.0
    assert ids.ids() is None
    assert ids.last() == {"a3"}
    path.write_text("a3\n")
    now[0] = 3.0
    assert ids.ids() == {"a3"}


def test_forgotten_by_the_file_or_by_whoever_else_says_so(tmp_path: Path):
    hidden, forgotten = tmp_path / "hidden", tmp_path / "forgotten"
    hidden.write_text("a7\n")
    forgotten.write_text("u1\n")
    settings = Serving(hidden_file=str(hidden), forgotten_file=str(forgotten))
    withheld = Withheld(settings, forgotten=lambda user: user == "u2")
    asked = [withheld.apply(Asked(user_id=user, exclude=["a1"])) for user in ("u1", "u2", "u3", None)]
    assert [one.user_id for one in asked] == [None, None, "u3", None]
    assert all(list(one.exclude) == ["a1", "a7"] for one in asked)
    assert Withheld(Serving()).apply(Asked(user_id="u1")) == Asked(user_id="u1")
    forgotten.unlink()
    time.sleep(0.6)
    assert withheld.is_forgotten("u3")  # a list that cannot be read closes
