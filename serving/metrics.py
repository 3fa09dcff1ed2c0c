"""Figures for Prometheus. No label holds an id of a user or a title."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The service's own registry, so that two services in one process do not share figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "audiorec_serving_requests_total", "Requests", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "audiorec_serving_request_seconds",
            "Time from a request's head to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refusals = Counter(
            "audiorec_serving_refusals_total",
            "Requests turned away by key, rate, size or load",
            ["why"],
            registry=self.registry,
        )
        self.recommendations = Counter(
            "audiorec_serving_recommendations_total",
            "Answers, by where they are shown and whether anything personal was known",
            ["surface", "kind"],
            registry=self.registry,
        )
        self.batch = Histogram(
            "audiorec_serving_search_batch",
            "Requests searched at once",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.waiting = Gauge(
            "audiorec_serving_waiting", "Requests that wait for a search", registry=self.registry
        )
        self.versions = Counter(
            "audiorec_serving_versions_total",
            "Looks at the champion that swapped a version in, refused one, or got no answer",
            ["result"],
            registry=self.registry,
        )
        self._version = Gauge(
            "audiorec_serving_model_version", "Number of the version that answers", registry=self.registry
        )
        self._data_date = Gauge(
            "audiorec_serving_data_date_seconds",
            "Data date of the version that answers, at 00:00 UTC",
            registry=self.registry,
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def page(self, version: str | None, data_date: datetime | None) -> bytes:
        """All figures, as Prometheus reads them."""
        if version is not None and version.isdigit():
            self._version.set(int(version))
        if data_date is not None:
            self._data_date.set(data_date.replace(tzinfo=UTC).timestamp())
        return generate_latest(self.registry)
