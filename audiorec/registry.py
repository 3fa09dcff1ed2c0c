"""The registry: MLflow versions of the recommender, found before made, and the aliases `champion` and `challenger`.

A version is known by its data date and fingerprint, not by when it was made: registering one twice makes nothing.
What a version needs is named by `release.json` (manifests and their hashes), so nothing is loaded by MLflow itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import tenacity
from filelock import FileLock, Timeout

from audiorec import tracking
from audiorec.errors import BadSettings, Busy, Unavailable
from audiorec.settings import Settings

CHAMPION = "champion"
CHALLENGER = "challenger"
_NOT_THERE = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True)
class Version:
    """One registered version, as its tags tell."""

    number: str
    as_of: date
    fingerprint: str
    hit_rate: float
    tags: Mapping[str, str]

    @property
    def promoted(self) -> bool:
        return self.tags.get("promoted") == "true"

    @property
    def rejected(self) -> bool:
        return self.tags.get("rejected") == "true"

    @property
    def release(self) -> dict[str, Any]:
        """The content of `release.json`: manifests by task."""
        return dict(json.loads(self.tags["release"]))


class Registry:
    """The registered model that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.name = settings.release.model_name
        self._client = tracking.client(settings, patient=True)

    @contextmanager
    def exclusive(self, wait_seconds: float = 1800) -> Iterator[None]:
        """Alias moves have no compare-and-set in MLflow: on one machine a lock keeps them apart.

        Raises:
            Busy: not had within `wait_seconds`.
        """
        folder = Path(self._settings.store.scratch) / "leases"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"registry-{self.name}.lock")
        try:
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise Busy(
                f"another process has been moving aliases of {self.name} for {wait_seconds:.0f} s (it holds {lock.lock_file}); "
                "see which run of promote it is, then clear this task"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Call MLflow, trying again while it does not answer.

        Raises:
            Unavailable: it did not answer in time.
        """
        from mlflow.exceptions import MlflowException, RestException

        def unanswered(error: BaseException) -> bool:
            # A server that is overloaded or about to come back (429, 5xx) counts as silent: no RestException, either.
            return isinstance(error, MlflowException) and not isinstance(error, RestException)

        retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception(unanswered),
            stop=tenacity.stop_after_delay(self._settings.mlflow.timeout_seconds),
            wait=tenacity.wait_exponential(max=10),
            reraise=True,
        )
        try:
            return retry(function, *arguments, **named)
        except MlflowException as error:
            if not unanswered(error):
                raise
            raise Unavailable(
                f"MLflow at {self._settings.mlflow.uri} (mlflow.uri) did not answer for {self._settings.mlflow.timeout_seconds:.0f} s: "
                f"{str(error).splitlines()[0][:200]}. Start it (`audiorec up`), then clear this task"
            ) from None

    def versions(self) -> list[Version]:
        """All versions of the model, the latest data date first (equal dates: the newest number first)."""
        found = self._call(self._client.search_model_versions, f"name='{self.name}'", max_results=10_000)
        versions = [_version(entry) for entry in found if "as_of" in entry.tags]
        return sorted(versions, key=lambda v: (v.as_of, int(v.number)), reverse=True)

    def find(self, as_of: date, fingerprint: str) -> Version | None:
        """The version of this date and fingerprint, if it was registered."""
        query = f"name='{self.name}' and tags.as_of='{as_of}' and tags.fingerprint='{fingerprint}'"
        found = self._call(self._client.search_model_versions, query)
        return _version(found[0]) if found else None

    def alias(self, name: str) -> Version | None:
        """The version that an alias points to.

        Raises:
            BadSettings: somebody gave the alias to a version that `promote` did not make.
        """
        from mlflow.exceptions import RestException

        try:
            entry = self._call(self._client.get_model_version_by_alias, self.name, name)
        except RestException as error:
            if error.error_code in (_NOT_THERE, "INVALID_PARAMETER_VALUE"):
                return None
            raise
        if "as_of" not in entry.tags:
            raise BadSettings(
                f"{self.name} version {entry.version} has the alias {name!r} but no tag `as_of`, so promote did not make it; "
                "take the alias away in MLflow, or give it to a version of ours"
            )
        return _version(entry)

    def hold(self) -> str | None:
        """Who holds the alias and why, or None."""
        from mlflow.exceptions import RestException

        try:
            return self._call(self._client.get_registered_model, self.name).tags.get("hold") or None
        except RestException as error:
            # Any other answer is no answer: a hold that cannot be read must not count as none.
            if error.error_code != _NOT_THERE:
                raise
            return None

    def register(
        self,
        as_of: date,
        fingerprint: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        files: Sequence[Path],
    ) -> Version:
        """Make the version of this date and fingerprint, or return the one that is there.

        Figures and files go to an MLflow run of the same fingerprint, which a killed attempt left or this one makes.
        """
        from mlflow.exceptions import RestException

        there = self.find(as_of, fingerprint)
        if there is not None:
            return there
        try:
            self._call(self._client.create_registered_model, self.name)
        except RestException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run_tags = {"task": "promote", "as_of": str(as_of), "fingerprint": fingerprint}
        run_id = self._call(
            tracking.find_or_create_run, self._client, self._settings, f"release {as_of}", run_tags
        )
        for name, value in metrics.items():
            self._call(self._client.log_metric, run_id, name, value)
        for path in files:
            self._call(self._client.log_artifact, run_id, str(path), "release")
        self._call(self._client.set_terminated, run_id)
        every_tag = {"as_of": str(as_of), "fingerprint": fingerprint, **tags}

        def found_or_made() -> Version:
            # An answer that was lost on its way back must not make a second version when it is tried again.
            return self.find(as_of, fingerprint) or _version(
                self._client.create_model_version(
                    self.name, f"runs:/{run_id}/release", run_id, tags=every_tag
                )
            )

        made: Version = self._call(found_or_made)
        return made

    def record_verdict(
        self, version: Version, verdict: str, policy: str, run_type: str, promoted: bool
    ) -> None:
        """Write the verdict with its reasons on the version; the tag `verdict` last: where it is, all the rest is."""
        self._call(self._client.update_model_version, self.name, version.number, description=verdict)
        tags = {"promoted": "true"} if promoted else {}
        for key, value in {**tags, "policy": policy, "run_type": run_type, "verdict": verdict[:5000]}.items():
            self._call(self._client.set_model_version_tag, self.name, version.number, key, value)

    def point(self, alias: str, version: Version) -> None:
        """Move an alias."""
        self._call(self._client.set_registered_model_alias, self.name, alias, version.number)


def _version(entry: Any) -> Version:
    tags = dict(entry.tags)
    return Version(
        str(entry.version),
        date.fromisoformat(tags["as_of"]),
        tags["fingerprint"],
        float(tags.get("hit_rate", "nan")),
        tags,
    )
