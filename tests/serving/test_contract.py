"""The OpenAPI document and the service agree: schemathesis makes up requests from the one and asks the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import KEY, NO_KEY_LIMIT, Running, running
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from audiorec.champion import describe, write_pointer
from audiorec.store import Store
from serving.client import NewTitleIn

if TYPE_CHECKING:
    from released import Releases

pytestmark = pytest.mark.long

MODEL_NAME = "audiobook_recommender"
_EXAMPLES = 10
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def there(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    work = tmp_path_factory.mktemp("contract")
    serving = {"follow": "pointer", "timeout_seconds": 60.0, **NO_KEY_LIMIT}
    settings = releases.copy(work, services={"home": str(work / "home")}, serving=serving)
    as_of = releases.dates[0]
    release = describe(as_of, dict(releases.inputs(as_of, settings)))
    write_pointer(Store(settings.store.uri, settings.store.scratch), MODEL_NAME, "1", release)
    with running(settings) as service:
        # The text model is loaded when it is first needed; schemathesis waits ten seconds for an answer.
        service.client.similar_to_text(NewTitleIn(title="A title"))
        yield service


@pytest.fixture(scope="module")
def schema(there: Running) -> Any:
    return schemathesis.openapi.from_url(f"{there.address}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_requests_from_the_document_get_answers_of_the_document(schema: Any, mode: Any):
    """Good and broken requests for every operation: documented statuses, answers of their schema, never a 5xx."""
    asked: dict[str, int] = {}
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 8
    for operation in operations:

        @settings(
            max_examples=_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer = case.call(headers={"X-API-Key": KEY})
            asked[case.operation.label] = asked.get(case.operation.label, 0) + 1
            case.validate_response(answer, checks=CHECKS)

        try:
            ask()
        except Exception as error:
            if type(error).__name__ not in ("Unsatisfiable", "SkipTest"):  # nothing about it can be broken
                raise
    assert asked["POST /v1/recommendations"] >= _EXAMPLES - 5


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=300))
def test_any_bytes_are_refused_politely(there: Running, body: bytes):
    answer = httpx.post(f"{there.address}/v1/recommendations", content=body, headers={"X-API-Key": KEY})
    assert answer.status_code in (200, 400, 422)


def test_the_document_is_complete(there: Running):
    document = httpx.get(f"{there.address}/openapi.json").json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"], path
            assert "200" in operation["responses"]
