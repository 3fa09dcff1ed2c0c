"""The registry: MLflow versions of the recommender, found before made, and the aliases `champion` and `challenger`.

A version is known by its data date and fingerprint, not by when it was made: registering one twice makes nothing.
What a version needs is named by `release.json` (manifests and their hashes), so nothing is loaded by MLflow itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
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


@dataclass(frozen=True)
class Hold:
    """Nothing may become champion: who says so, why, since when and until when (None: until it is taken back)."""

    who: str
    why: str
    since: datetime
    until: datetime | None

    def line(self) -> str:
        """As a verdict or a person's terminal names it."""
        end = f"until {self.until:%Y-%m-%d %H:%M} UTC" if self.until else "until it is taken back"
        return f"{self.who}: {self.why}, {end}"

    def to_tag(self) -> str:
        """As MLflow keeps it."""
        plain = {name: str(value) if value else None for name, value in asdict(self).items()}
        return json.dumps(plain, ensure_ascii=False)

    @classmethod
    def from_tag(cls, text: str) -> Hold:
        """From the tag; words that a person typed into MLflow are a hold without an end."""
        try:
            plain = json.loads(text)
            until = datetime.fromisoformat(plain["until"]) if plain["until"] else None
            return cls(str(plain["who"]), str(plain["why"]), datetime.fromisoformat(plain["since"]), until)
        except (ValueError, KeyError, TypeError):
            return cls("by hand", text, datetime.fromtimestamp(0, UTC), None)


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
            if wait_seconds > 1:
                try:
                    lock.acquire(timeout=1)
                except Timeout:
                    print(f"another process is moving aliases of {self.name}; waiting for it", flush=True)
            if not lock.is_locked:
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

    def get(self, number: str) -> Version | None:
        """The version of this number, None if there is none that `promote` made."""
        return next((version for version in self.versions() if version.number == number), None)

    def hold(self, now: datetime | None = None) -> Hold | None:
        """The hold on `champion` that has not ended, or None."""
        from mlflow.exceptions import RestException

        try:
            text = self._call(self._client.get_registered_model, self.name).tags.get("hold")
        except RestException as error:
            # Any other answer is no answer: a hold that cannot be read must not count as none.
            if error.error_code != _NOT_THERE:
                raise
            return None
        found = Hold.from_tag(text) if text else None
        if found is None or (found.until is not None and found.until <= (now or datetime.now(UTC))):
            return None
        return found

    def set_hold(self, hold: Hold | None) -> None:
        """Set the hold, or take it back.

        Raises:
            BadSettings: no version was ever registered, so there is nothing to hold.
        """
        from mlflow.exceptions import RestException

        try:
            # Emptied rather than deleted: a deletion that is tried again after a lost answer would be refused.
            text = hold.to_tag() if hold else ""
            self._call(self._client.set_registered_model_tag, self.name, "hold", text)
        except RestException as error:
            if error.error_code != _NOT_THERE:
                raise
            raise BadSettings(
                f"MLflow has no registered model {self.name!r} (release.model_name) yet; run the chain first"
            ) from None

    def reject(self, version: Version, who: str, why: str, at: datetime) -> None:
        """Mark a version as never eligible again; the mark itself first."""
        tags = {"rejected": "true", "rejected_by": who, "rejected_why": why[:5000], "rejected_at": str(at)}
        for key, value in tags.items():
            self._call(self._client.set_model_version_tag, self.name, version.number, key, value)

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

    def point(self, alias: str, version: Version | None) -> None:
        """Move an alias, or take it away. Only `audiorec/release.py` calls this: it keeps the record."""
        if version is None:
            self._call(self._client.delete_registered_model_alias, self.name, alias)
        else:
            self._call(self._client.set_registered_model_alias, self.name, alias, version.number)


@dataclass(frozen=True)
class KeptRelease:
    """A release that must stay: its registered model and number, whether an alias points to it, its `release.json`, and
    whether the store's own pointer named it."""

    model: str
    number: str
    aliased: bool
    release: Mapping[str, Any]
    pointed: bool = False


def releases_to_keep(settings: Settings, oldest: date) -> list[KeptRelease]:
    """Releases that an alias points to, or that were promoted and are of `oldest` or later, of all registered models.

    Models of other tables may share the store, so all of those that `promote` made count, not only the settings' own.

    Raises:
        Unavailable: MLflow does not answer.
    """
    registry = Registry(settings)
    kept: list[KeptRelease] = []
    token = None
    while True:
        page = registry._call(registry._client.search_registered_models, max_results=200, page_token=token)
        for model in page:
            aliased = {str(number) for number in dict(model.aliases).values()}
            other = registry if model.name == registry.name else Registry(named(settings, model.name))
            kept += [
                KeptRelease(model.name, version.number, version.number in aliased, version.release)
                for version in other.versions()
                if "release" in version.tags
                and (
                    version.number in aliased
                    or (version.promoted and not version.rejected and version.as_of >= oldest)
                )
            ]
        token = page.token
        if not token:
            return kept


def named(settings: Settings, model: str) -> Settings:
    """The settings with another registered model."""
    release = settings.release.model_copy(update={"model_name": model})
    return settings.model_copy(update={"release": release})


def _version(entry: Any) -> Version:
    tags = dict(entry.tags)
    return Version(
        str(entry.version),
        date.fromisoformat(tags["as_of"]),
        tags["fingerprint"],
        float(tags.get("hit_rate", "nan")),
        tags,
    )
