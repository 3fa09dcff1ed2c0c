"""What every request passes: key, rate, size, time, and a line in the log that names nobody."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from audiorec.settings import Serving
from serving.keys import Keys, Limiter
from serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("serving.access")

OPEN_PATHS = frozenset({"/livez", "/readyz", "/openapi.json"})
"""What anybody may ask: it says nothing of anybody."""


class _Refusal(Exception):
    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


class Gate:
    """ASGI middleware around the application.

    A body is read whole before the application sees it, within the limits of size and time, so that a slow or endless
    one ties up nothing else. The log has method, route (never the path, which holds ids), status, milliseconds, the
    name of the key's holder and a request id that the answer carries too.
    """

    def __init__(self, app: App, settings: Serving, keys: Keys, limiter: Limiter, metrics: Metrics) -> None:
        self._app, self._settings, self._keys, self._limiter, self._metrics = (
            app,
            settings,
            keys,
            limiter,
            metrics,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request_id, status, started = time.perf_counter(), uuid.uuid4().hex[:12], 500, False
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}

        async def sent(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        holder = None
        try:
            holder = self._admit(scope)
            scope["state"]["holder"] = holder
            body = await self._body(scope, receive)
            async with asyncio.timeout(self._settings.timeout_seconds):
                await self._app(scope, _replayed(body, receive), sent)
        except _Refusal as refusal:
            await _answer(sent, refusal.status, refusal.detail, refusal.headers)
        except TimeoutError:
            if not started:
                detail = f"no answer within {self._settings.timeout_seconds:g} s; try again later"
                await _answer(sent, 504, detail, {"retry-after": "1"})
        except Exception:
            # The traceback goes to the log without the request's content, which holds ids.
            logging.getLogger("serving").exception("request %s failed", request_id)
            if not started:
                await _answer(sent, 500, f"something went wrong; the log has it under {request_id}", {})
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.request(route, status, seconds)
            log.info(
                '{"request":"%s","method":"%s","route":"%s","status":%d,"ms":%.1f,"key":"%s"}',
                request_id,
                scope["method"],
                route,
                status,
                seconds * 1e3,
                holder or "",
            )

    def _admit(self, scope: Scope) -> str:
        """Who asks, by name. Raises _Refusal without a key or over the rate."""
        if scope["path"] in OPEN_PATHS:
            return ""
        holder: str | None = "anonymous"
        if self._settings.require_key:
            holder = self._keys.holder(_key(scope))
            if holder is None:
                self._metrics.refusals.labels("key").inc()
                raise _Refusal(
                    401,
                    "a valid API key is needed, in the header X-API-Key or as Authorization: Bearer",
                    {"www-authenticate": "Bearer"},
                )
        wait = self._limiter.wait(holder or "")
        if wait:
            self._metrics.refusals.labels("rate").inc()
            raise _Refusal(429, "too many requests of this key", {"retry-after": str(max(1, round(wait)))})
        return holder or ""

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises _Refusal if it is too long or too slow."""
        limit = self._settings.max_body_kb * 1024
        too_long = _Refusal(413, f"the body is longer than {self._settings.max_body_kb} KiB")
        stated = _header(scope, b"content-length")
        if stated.isdigit() and int(stated) > limit:
            self._metrics.refusals.labels("size").inc()
            raise too_long
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Refusal(400, "the client left")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        self._metrics.refusals.labels("size").inc()
                        raise too_long
                    more = message.get("more_body", False)
        except TimeoutError:
            raise _Refusal(
                408, f"the body did not come within {self._settings.timeout_seconds:g} s"
            ) from None
        return b"".join(parts)


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _key(scope: Scope) -> str:
    own = _header(scope, b"x-api-key")
    scheme, _, token = _header(scope, b"authorization").partition(" ")
    return own or (token.strip() if scheme.lower() == "bearer" else "")


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def _answer(send: Send, status: int, detail: str, headers: dict[str, str]) -> None:
    content = json.dumps({"detail": detail}).encode()
    every = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    named = [(key.encode(), value.encode()) for key, value in every.items()]
    await send({"type": "http.response.start", "status": status, "headers": named})
    await send({"type": "http.response.body", "body": content})
