"""Where alerts go: the log, a file beside it, and a webhook. Sending never raises."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from audiorec.oncall.alerts import Alert
from audiorec.settings import Settings

log = logging.getLogger("audiorec.oncall")

WEBHOOK_TRIES = 3
WEBHOOK_SECONDS = 5.0
REMEMBERED_BYTES = 1_000_000
"""How far back the record is read: some hundred alerts."""


def send(alert: Alert, settings: Settings) -> bool:
    """Log an alert, append it to `{home}/logs/alerts.jsonl` and post it to the webhook, if there is one.

    Returns whether every sink took it. A sink that fails is logged: the run has already failed, and a second
    error on top would only hide the first. What the webhook did not take is spooled and goes out with the next
    alert, or with the watchdog's next look, in its order (`flush`).
    """
    level = logging.ERROR if alert.severity == "page" and alert.status == "firing" else logging.WARNING
    log.log(level, "%s", alert.text())
    record = {"sent_at": datetime.now(UTC).isoformat(timespec="seconds"), **alert.to_dict()}
    delivered = True
    if settings.alerts.webhook_url:
        try:
            _spool(record, settings)
            delivered = flush(settings) == 0
        except OSError as error:
            log.error("the alert %s could not be spooled: %s", alert.dedup_key, error)
            delivered = _posted(settings.alerts.webhook_url, record)
    record["delivered"] = delivered
    try:
        _append(record_file(settings), record)
    except OSError as error:
        log.error("the alert %s could not be recorded: %s", alert.dedup_key, error)
        return False
    return delivered


def flush(settings: Settings) -> int:
    """Post what is spooled, oldest first, until one is not taken; returns how many are left."""
    folder = spool_folder(settings)
    if not settings.alerts.webhook_url or not folder.exists():
        return 0
    lock = FileLock(f"{folder}.lock", timeout=WEBHOOK_TRIES * (WEBHOOK_SECONDS + 1))
    try:
        with lock:
            waiting = sorted(folder.glob("*.json"))
            for number, path in enumerate(waiting):
                try:
                    record = json.loads(path.read_text(encoding="utf-8"))
                except ValueError:
                    log.error("the spooled alert %s is unreadable and was set aside", path.name)
                    path.replace(path.with_suffix(".unreadable"))
                    continue
                if not _posted(settings.alerts.webhook_url, record):
                    return len(waiting) - number
                path.unlink(missing_ok=True)
            return 0
    except Timeout:  # somebody else is posting them
        return len(list(folder.glob("*.json")))


def spool_folder(settings: Settings) -> Path:
    """Alerts that the webhook has not taken yet, a file each, named by their time."""
    return Path(settings.services.home).absolute() / "logs" / "spool"


def _spool(record: dict[str, Any], settings: Settings) -> None:
    folder = spool_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(record, ensure_ascii=False, default=str), encoding="utf-8")
    temporary.replace(path)


def _posted(address: str, record: dict[str, Any]) -> bool:
    try:
        _post(address, record)
    except Exception as error:
        # The address itself is a secret in most chat systems.
        log.error("the alert %s did not reach the webhook: %s", record.get("dedup_key"), type(error).__name__)
        return False
    return True


def open_alerts(settings: Settings) -> dict[str, dict[str, Any]]:
    """The last firing alert of each key that nothing has answered with a recovery."""
    still: dict[str, dict[str, Any]] = {}
    for past in recorded(settings):
        if past.get("status") != "recovered":
            still[past["dedup_key"]] = past
        elif past.get("code") == "RECOVERED":  # the date's run ended well
            still = {key: one for key, one in still.items() if not _ends_with(one, past.get("data_date"))}
        else:
            still.pop(past["dedup_key"], None)
    return still


def record_file(settings: Settings) -> Path:
    """The record of all alerts, a JSON object a line."""
    return Path(settings.services.home).absolute() / "logs" / "alerts.jsonl"


def recorded(settings: Settings) -> list[dict[str, Any]]:
    """The latest alerts, oldest first."""
    path = record_file(settings)
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            start = max(0, file.tell() - REMEMBERED_BYTES)
            file.seek(start)
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines[1:] if start else lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def firing_for_run(run_id: str, clear_number: int, settings: Settings) -> list[dict[str, Any]]:
    """Alerts about failed tasks of a run, since it was last cleared."""
    return [
        past
        for past in firing(settings)
        if past.get("run_id") == run_id and past.get("clear_number", 0) == clear_number
    ]


def firing(settings: Settings) -> list[dict[str, Any]]:
    """Alerts that say why a run failed, of all runs. A late day is none: the run goes on when it comes."""
    return [
        past
        for past in recorded(settings)
        if past.get("status") == "firing" and past.get("code") != "DATA-LATE"
    ]


def open_for_date(data_date: str, settings: Settings) -> list[str]:
    """Keys of alerts about a date's data that nothing has answered with a recovery, and that its good run ends."""
    return [key for key, past in open_alerts(settings).items() if _ends_with(past, data_date)]


def _ends_with(past: Mapping[str, Any], data_date: str | None) -> bool:
    """Whether a good run of a date ends an alert. Old data stay old however often they are run again."""
    return past.get("data_date") == data_date and past.get("code") != "STALE"


def _post(address: str, record: dict[str, Any]) -> None:
    for attempt in Retrying(
        stop=stop_after_attempt(WEBHOOK_TRIES),
        wait=wait_fixed(1),
        retry=retry_if_exception_type(httpx.HTTPError),
        reraise=True,
    ):
        with attempt:
            httpx.post(address, json=record, timeout=WEBHOOK_SECONDS).raise_for_status()


def _append(path: Path, record: dict[str, Any]) -> None:
    with _locked(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time; a lock that somebody sits on costs us order, not the alert."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", timeout=5)
    with contextlib.suppress(Timeout):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
