"""A client of the service.

with RecommendationClient("http://127.0.0.1:8000", key) as client:
    for title in client.recommend(user_id="u1445", k=3).recommendations:
        print(title.title, title.reason)
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from serving.schemas import (
    BatchRequest,
    BatchResponse,
    ItemType,
    NewTitleIn,
    Readiness,
    RecommendationRequest,
    RecommendationResponse,
    SimilarResponse,
    SimilarToTextRequest,
)

__all__ = ["NewTitleIn", "RecommendationClient", "RecommendationRequest", "ServiceError"]


class ServiceError(Exception):
    """The service gave no answer: its status and what it said. `retry_after` in seconds where it named a time."""

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail, self.retry_after = status, detail, retry_after


class RecommendationClient:
    """Typed calls of the service over one pool of connections.

    Args:
        address: such as http://127.0.0.1:8000.
        key: an API key.
        timeout_seconds: for each call.

    Raises:
        ServiceError: from every call, for an answer other than 200.
        httpx.HTTPError: from every call, where nothing answers.
    """

    def __init__(self, address: str, key: str, timeout_seconds: float = 10.0) -> None:
        self._http = httpx.Client(base_url=address, headers={"X-API-Key": key}, timeout=timeout_seconds)

    def recommend(
        self, request: RecommendationRequest | None = None, **fields: Any
    ) -> RecommendationResponse:
        """Audiobooks for a request, or for the fields of one (`user_id`, `k`, `country`, …)."""
        asked = request or RecommendationRequest.model_validate(fields)
        return RecommendationResponse.model_validate_json(self._post("/v1/recommendations", asked))

    def recommend_batch(self, requests: Sequence[RecommendationRequest]) -> list[RecommendationResponse]:
        """Up to a hundred requests, answered by one version."""
        asked = BatchRequest(requests=list(requests))
        return BatchResponse.model_validate_json(self._post("/v1/recommendations/batch", asked)).responses

    def similar(self, item_type: ItemType, item_id: str, k: int = 10) -> SimilarResponse:
        """Titles near a title."""
        path = f"/v1/{item_type}s/{quote(item_id, safe='')}/similar"
        return SimilarResponse.model_validate_json(self._content(self._http.get(path, params={"k": k})))

    def similar_to_text(self, title: NewTitleIn, k: int = 10) -> SimilarResponse:
        """Audiobooks near one that the release does not hold."""
        asked = SimilarToTextRequest(title=title, k=k)
        return SimilarResponse.model_validate_json(self._post("/v1/audiobooks/similar", asked))

    def readiness(self) -> Readiness:
        """Whether the service answers, and with which version."""
        answer = self._http.get("/readyz")
        if answer.status_code not in (200, 503):
            self._content(answer)
        return Readiness.model_validate_json(answer.content)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, path: str, asked: Any) -> bytes:
        content = asked.model_dump_json(exclude_unset=True)
        return self._content(
            self._http.post(path, content=content, headers={"Content-Type": "application/json"})
        )

    @staticmethod
    def _content(answer: httpx.Response) -> bytes:
        if answer.status_code == 200:
            return answer.content
        try:
            detail = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            detail = answer.text[:200]
        wait = answer.headers.get("Retry-After", "")
        raise ServiceError(answer.status_code, detail, float(wait) if wait.isdigit() else None)
