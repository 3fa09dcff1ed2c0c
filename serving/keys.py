"""API keys: read from a file or the environment, compared in constant time, never written anywhere."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from audiorec.errors import BadSettings
from audiorec.settings import KEYS_VARIABLE, Settings
from audiorec.stack.layout import Layout

_SHORTEST = 16


def load_keys(settings: Settings, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Keys by the name of who holds them.

    From the variable AUDIOREC_API_KEYS (`name:key,name:key`) if it is set, else from the JSON file that `audiorec up`
    makes below services.home.

    Raises:
        BadSettings: there is none though one is required, or it is too short to be a secret.
    """
    given = (os.environ if environment is None else environment).get(KEYS_VARIABLE)
    path = Layout.of(settings).serving_keys
    if given:
        parts = [entry.strip().partition(":") for entry in given.split(",") if entry.strip()]
        keys = {name: key for name, colon, key in parts if colon}
        if len(keys) < len(parts):
            raise BadSettings(
                f"{KEYS_VARIABLE} must be name:key, several with commas between, names all different"
            )
        where = KEYS_VARIABLE
    else:
        keys, where = _from_file(path), str(path)
    weak = sorted(name for name, key in keys.items() if len(key) < _SHORTEST)
    if weak:
        raise BadSettings(f"keys of {', '.join(weak)} in {where} are shorter than {_SHORTEST} characters")
    if settings.serving.require_key and not keys:
        raise BadSettings(
            f'no API key: set {KEYS_VARIABLE} to name:key, or put {{"name": "key"}} into {path} (`audiorec up` does), '
            "or set serving.require_key = false"
        )
    return keys


def _from_file(path: Path) -> dict[str, str]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(key) for name, key in plain.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError):
        raise BadSettings(f"{path} is not a JSON object of names and keys") from None


class Keys:
    """Tells who holds a key.

    All digests are compared every time, each in constant time: how long it takes says nothing of any key.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = {name: _digest(key) for name, key in keys.items()}

    def holder(self, key: str) -> str | None:
        """The name that goes with a key, None for a key that nobody holds."""
        given, found = _digest(key), None
        for name, known in self._digests.items():
            if hmac.compare_digest(given, known):
                found = name
        return found

    def __bool__(self) -> bool:
        return bool(self._digests)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass
class _Bucket:
    tokens: float
    at: float


@dataclass
class Limiter:
    """A token bucket for each holder of a key: `rate` requests a second on average, `burst` at once."""

    rate: float
    burst: int
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def wait(self, holder: str, cost: int = 1, now: float | None = None) -> float:
        """Take `cost` requests; 0, or the seconds after which they would be granted (then none are taken)."""
        now = time.monotonic() if now is None else now
        bucket = self._buckets.setdefault(holder, _Bucket(float(self.burst), now))
        bucket.tokens = min(float(self.burst), bucket.tokens + (now - bucket.at) * self.rate)
        bucket.at = now
        if bucket.tokens >= min(cost, self.burst):
            bucket.tokens -= cost
            return 0.0
        return (min(cost, self.burst) - bucket.tokens) / self.rate
