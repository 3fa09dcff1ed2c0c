"""The service over real HTTP, with a real release: what it answers, to whom, and what it refuses."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from running import KEY, NO_KEY_LIMIT, Running, running, wait_for

from audiorec.champion import describe, write_pointer
from audiorec.recommend import Asked, Recommender
from audiorec.store import Store
from serving.client import NewTitleIn, RecommendationClient, RecommendationRequest, ServiceError
from serving.schemas import BatchResponse, RecommendationResponse

if TYPE_CHECKING:
    from released import Releases

MODEL_NAME = "audiobook_recommender"


@pytest.fixture(scope="module")
def there(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service of the first date, which the store points to; some titles hidden, one user forgotten."""
    work = tmp_path_factory.mktemp("serving")
    (work / "hidden").write_text("# hidden by the editors\n")
    (work / "forgotten").write_text("")
    settings = releases.copy(
        work,
        services={"home": str(work / "home")},
        serving={
            "follow": "pointer",
            "poll_seconds": 0.2,
            "hidden_file": str(work / "hidden"),
            "forgotten_file": str(work / "forgotten"),
            "max_body_kb": 64,
            "timeout_seconds": 30.0,
            **NO_KEY_LIMIT,
        },
    )
    as_of = releases.dates[0]
    release = describe(as_of, dict(releases.inputs(as_of, settings)))
    write_pointer(Store(settings.store.uri, settings.store.scratch), MODEL_NAME, "7", release)
    with running(settings) as service:
        yield service


@pytest.fixture
def client(there: Running) -> RecommendationClient:
    return there.client


@pytest.fixture
def core(there: Running) -> Recommender:
    served = there.service.follower.current
    assert served is not None
    return served.recommender


@pytest.fixture
def warm(core: Recommender) -> str:
    return str(core.example_users()["a warm user"])


def post(there: Running, content: Any, path: str = "/v1/recommendations", **headers: str) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return httpx.post(
        there.address + path,
        content=body,
        headers={"X-API-Key": KEY, "Content-Type": "application/json", **headers},
        timeout=60,
    )


# --- answers ---------------------------------------------------------------------------------------------


def test_a_known_user_gets_what_the_core_gives(client: RecommendationClient, core: Recommender, warm: str):
    answer = client.recommend(user_id=warm, k=12, surface="home")
    expected = core.recommend(warm, 12)
    assert [one.id for one in answer.recommendations] == [one.audiobook_id for one in expected]
    assert [one.score for one in answer.recommendations] == [round(one.score, 6) for one in expected]
    assert [one.reason for one in answer.recommendations] == [one.reason for one in expected]
    assert (answer.user, answer.model_version, answer.data_date) == ("known", "7", core.as_of)
    assert {"audiobooks", "podcasts"} <= set(answer.basis)
    evidence = [one.evidence for one in answer.recommendations if one.evidence]
    assert evidence
    for one in answer.recommendations:
        assert one.parts is not None
        assert sum(one.parts.values()) == pytest.approx(one.score, abs=1e-4)
    bare = client.recommend(user_id=warm, k=3, reasons=False)
    assert {(one.reason, one.evidence) for one in bare.recommendations} == {("", None)}


def test_strangers_and_nobody(client: RecommendationClient):
    nobody = client.recommend(country="DE", k=5)
    assert (nobody.user, nobody.popular, nobody.basis) == ("none", True, ["country"])
    assert (
        nobody.note == "Nothing personal is known, so these are the titles that are popular in the country."
    )
    assert nobody.recommendations[0].reason.startswith("Popular in DE: number 1 ")
    stranger = client.recommend(user_id="never-heard-of", age=30, country="DE")
    assert (stranger.user, stranger.popular, stranger.basis) == ("unknown", False, ["age", "country"])
    listener = client.recommend(
        history=[{"type": "podcast", "id": "p003"}, {"type": "podcast", "id": "gone"}],
        artists=[{"id": "gone"}],
    )
    assert listener.basis == ["podcasts"]
    assert listener.ignored == {"history": ["gone"], "artists": ["gone"]}


def test_a_batch_is_its_requests(client: RecommendationClient, there: Running, warm: str):
    requests = [RecommendationRequest(user_id=warm, k=4), RecommendationRequest(country="US", k=2)] * 9
    assert client.recommend_batch(requests) == [client.recommend(one) for one in requests]
    raw = post(there, {"requests": [{"k": 1}]}, "/v1/recommendations/batch")
    assert BatchResponse.model_validate_json(raw.content).responses[0].popular
    assert post(there, {"requests": []}, "/v1/recommendations/batch").status_code == 422


def test_similar_titles(client: RecommendationClient, core: Recommender):
    for kind, item in (("audiobook", "a003"), ("podcast", "p003")):
        answer = client.similar(kind, item, 4)  # type: ignore[arg-type]
        assert [one.id for one in answer.similar] == [one.item_id for one in core.similar(kind, item, 4)]  # type: ignore[arg-type]
    with pytest.raises(ServiceError, match="there is no audiobook 'a b/c' in the release") as failed:
        client.similar("audiobook", "a b/c")
    assert failed.value.status == 404


def test_a_title_from_its_text_alone(client: RecommendationClient, core: Recommender, warm: str):
    known = core.books.dropna(subset=["title", "description"]).iloc[0]
    new = NewTitleIn(id="fresh", title=known["title"], description=known["description"])
    assert len(client.similar_to_text(new, 3).similar) == 3
    answer = client.recommend(user_id=warm, k=150, new_titles=[new.model_dump(mode="json")])
    assert "fresh" in [one.id for one in answer.recommendations]


def test_hidden_and_forgotten_within_a_second(there: Running, client: RecommendationClient, warm: str):
    own = there.service.settings.serving
    before = client.recommend(user_id=warm, k=5)
    Path(own.hidden_file).write_text(f"{before.recommendations[0].id}\n")
    hidden = before.recommendations[0].id
    wait_for(lambda: hidden not in [one.id for one in client.recommend(user_id=warm, k=5).recommendations], 5)
    near = client.similar("audiobook", before.recommendations[1].id, 200)
    assert hidden not in [one.id for one in near.similar]
    Path(own.forgotten_file).write_text(f"{warm}\n")
    wait_for(lambda: client.recommend(user_id=warm).user == "unknown", 5)
    gone = client.recommend(user_id=warm)
    assert gone.popular
    assert gone.basis == []
    # A list that is lost closes: nobody's data is used until it is back.
    Path(own.forgotten_file).unlink()
    other = next(u for u in there.service.follower.current.recommender.profiles.users["user_id"] if u != warm)  # type: ignore[union-attr]
    wait_for(lambda: client.recommend(user_id=other).user == "unknown", 5)
    Path(own.forgotten_file).write_text("")
    Path(own.hidden_file).write_text("")
    wait_for(lambda: client.recommend(user_id=warm).recommendations[0].id == hidden, 5)


# --- who may ask, and how much ---------------------------------------------------------------------------


def test_every_route_but_health_needs_a_key(there: Running):
    paths = httpx.get(f"{there.address}/openapi.json").json()["paths"]
    assert len(paths) >= 8
    for path, methods in paths.items():
        for method in methods:
            url = there.address + re.sub(r"\{\w+\}", "a003", path)
            expected = 200 if path in ("/livez", "/readyz") else 401
            assert httpx.request(method, url).status_code == expected, path
            assert httpx.request(method, url, headers={"X-API-Key": KEY + "x"}).status_code == expected
    bearer = httpx.get(f"{there.address}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    assert bearer.status_code == 200
    assert httpx.get(f"{there.address}/docs").status_code == 401
    assert httpx.get(f"{there.address}/nothing", headers={"X-API-Key": KEY}).status_code == 404


def test_a_long_body_is_refused(there: Running):
    assert post(there, b"x" * (64 * 1024 + 1)).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * 1024

    answer = httpx.post(
        f"{there.address}/v1/recommendations", content=endless(), headers={"X-API-Key": KEY}, timeout=30
    )
    assert answer.status_code == 413


def test_too_many_requests_of_one_key(there: Running, monkeypatch: pytest.MonkeyPatch):
    limiter = there.service.limiter
    monkeypatch.setattr(limiter, "burst", 3)
    monkeypatch.setattr(limiter, "rate", 0.5)
    limiter._buckets.clear()
    answers = [post(there, {"k": 1}) for _ in range(4)]
    assert [one.status_code for one in answers] == [200, 200, 200, 429]
    assert int(answers[-1].headers["Retry-After"]) in (1, 2)
    limiter._buckets.clear()
    batch = post(there, {"requests": [{"k": 1}] * 3}, "/v1/recommendations/batch")
    assert batch.status_code == 200
    assert post(there, {"k": 1}).status_code == 429
    limiter._buckets.clear()


HOSTILE = [
    b"", b"{", b"null", b"[]", b"0", b'"x"', b"\xff\xfe", b"{}" * 50, b'{"k": NaN}', b'{"k": 1e999}', b'{"k": -1}', b'{"k": 201}',
    b'{"age": "old"}', b'{"age": NaN}', b'{"age": -1}', b'{"age": 1e308}', b'{"user_id": ""}', b'{"user_id": 7}', b'{"user_id": "\\u0000"}',
    b'{"user_id": "\\ud800"}', b'{"country": "\\ud800"}', b'{"language": "\\udfff"}', b'{"language": "' + b"x" * 65 + b'"}',
    b'{"history": [{"type": "film", "id": "x"}]}', b'{"history": {"type": "podcast"}}', b'{"history": [null]}',
    b'{"history": [' + b",".join([b'{"type":"podcast","id":"p001"}'] * 201) + b"]}",
    b'{"artists": [{"id": "x", "plays": 0}]}', b'{"artists": [{"id": "x", "plays": 1e300}]}', b'{"artists": [{"id": "x", "plays": NaN}]}',
    b'{"exclude": ["' + b"x" * 201 + b'"]}', b'{"exclude": "a001"}', b'{"new_titles": [{}]}', b'{"new_titles": [{"title": ""}]}',
    b'{"new_titles": [{"title": "\\ud83d", "published_on": "0000-01-01"}]}', b'{"new_titles": [{"title": "x", "published_on": "9999-12-31"}]}',
    b'{"new_titles": [{"title": "\\u202e\\u0000 x", "description": "' + b"\\ud800" * 20 + b'"}]}',
    b'{"without": [{"type": "audiobook", "id": "../../etc"}]}', b'{"surface": "\\n\\n"}', b'{"reasons": "maybe"}', b'{"__proto__": {}}',
    b"[" * 5_000, b'{"a":' * 3_000, b'{"user_id": "' + b"%s" * 60 + b'"}', b'{"user_id": "\' OR 1=1; DROP TABLE users; --"}',
    b'{"country": "${jndi:ldap://x}"}', b'{"user_id": "{{7*7}}"}', b"<xml/>", b"k=1&user_id=2", bytes(range(256)),
]  # fmt: skip


def test_hostile_bodies_never_break_it_and_leave_no_trace(
    there: Running, warm: str, caplog: pytest.LogCaptureFixture
):
    """Two hundred requests: 50 bodies on four routes and types. Nothing of them, and no key, reaches the log."""
    secret = "u-secret-7788"
    caplog.set_level(logging.DEBUG)
    seen = set()
    for path in ("/v1/recommendations", "/v1/recommendations/batch", "/v1/audiobooks/similar"):
        for body in HOSTILE:
            if path.endswith("batch") and body.startswith(b"{"):
                body = b'{"requests": [' + body + b"]}"
            answer = post(there, body, path)
            assert answer.status_code < 500, (path, body[:80], answer.text)
            seen.add(answer.status_code)
    for body in HOSTILE:
        answer = post(there, body, **{"Content-Type": "text/plain"})
        assert answer.status_code < 500, (body[:80], answer.text)
    assert {200, 422} <= seen
    for path in (f"/v1/audiobooks/{secret}/similar", f"/v1/podcasts/{secret}/similar?k=0", f"/{secret}"):
        assert httpx.get(there.address + path, headers={"X-API-Key": KEY}).status_code in (404, 422)
    post(there, {"user_id": secret, "k": 1})
    refused = post(there, {"user_id": [secret]})
    assert secret not in refused.text
    post(there, {"user_id": warm})
    post(there, {"user_id": warm}, **{"X-API-Key": "wrong-key-5566"})
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    text = "\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in ours)
    assert "/v1/recommendations" in text
    for leak in (secret, warm, KEY, "wrong-key-5566"):
        assert leak not in text


# --- what operators see ----------------------------------------------------------------------------------


def test_metrics_name_nobody(there: Running, client: RecommendationClient, warm: str):
    client.recommend(user_id=warm, surface="home")
    client.recommend(country="DE", surface="billboard")
    page = httpx.get(f"{there.address}/metrics", headers={"X-API-Key": KEY}).text
    assert re.search(r'audiorec_serving_requests_total\{route="/v1/recommendations",status="200"\} \d', page)
    assert re.search(r'recommendations_total\{kind="asked for somebody",surface="home"\} \d', page)
    assert re.search(r'recommendations_total\{kind="anybody",surface="other"\} \d', page)
    assert "audiorec_serving_model_version 7.0" in page
    assert "billboard" not in page
    assert warm not in page


def test_the_document_shows_examples_that_work(there: Running):
    document = httpx.get(f"{there.address}/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert document["components"]["securitySchemes"]["key"]["name"] == "X-API-Key"
    for name, path in (
        ("RecommendationRequest", "/v1/recommendations"),
        ("SimilarToTextRequest", "/v1/audiobooks/similar"),
    ):
        for example in schemas[name]["examples"]:
            assert post(there, example, path).status_code == 200
    raw = post(there, schemas["RecommendationRequest"]["examples"][0])
    RecommendationResponse.model_validate_json(raw.content)  # strict: no field more, none less
    assert raw.headers["X-Model-Version"] == "7"


def test_what_is_withheld_is_the_cores_business(core: Recommender, warm: str):
    """A request that leaves everything out gets nothing, and no error."""
    everything = [core.item_id("audiobook", idx) for idx in range(len(core.books))]
    asked = Asked(user_id=warm, exclude=everything)
    assert core.answer(asked).titles == []
    assert core.answer(replace(asked, user_id=None)).titles == []
