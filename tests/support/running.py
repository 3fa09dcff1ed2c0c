"""A service that runs: uvicorn on a free port of this machine, in a thread of the test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from released import free_port

from serving.__main__ import server as make_server
from serving.app import Service
from serving.client import RecommendationClient
from serving.following import Follower
from serving.keys import Keys

KEY = "a-key-of-the-tests-0123456789"

NO_KEY_LIMIT = {"requests_per_second": 100_000, "burst": 100_000}
"""Settings of a service whose tests ask as fast as the machine can: it refuses nobody for that."""


@dataclass(frozen=True)
class Running:
    """Its address, the client that holds the key, and what is behind it."""

    address: str
    client: RecommendationClient
    service: Service


@contextmanager
def running(settings: Any, follower: Follower | None = None, ready: bool = True) -> Iterator[Running]:
    """Start a service, wait until it is ready, end it."""
    service = Service(settings, follower, keys=Keys({"tests": KEY}))
    port = free_port()
    server = make_server(service, "127.0.0.1", port)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: server.started)
        with RecommendationClient(address, KEY, timeout_seconds=60) as client:
            if ready:
                wait_for(lambda: client.readiness().ready)
            yield Running(address, client, service)
    finally:
        server.should_exit = True
        thread.join(30)


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
