"""Which version answers: the champion, followed without a restart.

A new champion is checked by hash (its manifests against the release that the registry names, its files against the
manifests), linked into a folder of our own, loaded beside the version that answers, asked a few questions, and then
put in its place: one reference is replaced, between requests. A version that fails any of this is refused and the old
one goes on. The folder holds the last good version, from which a service starts while MLflow or the store is away.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from audiorec.champion import Bundle, read_pointer
from audiorec.errors import AudiorecError, BadData, Corrupt
from audiorec.fingerprint import digest
from audiorec.new_titles import TextEncoder
from audiorec.pseudonyms import Pseudonyms
from audiorec.recommend import Asked, Recommender
from audiorec.registry import CHAMPION, Registry
from audiorec.release_files import forget_others, keep, read_last_good, write_last_good
from audiorec.settings import Settings
from audiorec.store import Store

log = logging.getLogger("serving")

_RETRY_SECONDS = 60.0
"""After so long a refused version is tried once more, where another try may help (a disk that was away)."""
_REGISTRY_SECONDS = 5.0


class Champion(Protocol):
    """Says which version is champion: (number, release), or None where there is none."""

    def __call__(self) -> tuple[str, dict[str, Any]] | None: ...


def hasty(settings: Settings) -> Settings:
    """The settings for who answers people: MLflow is asked for a few seconds only."""
    patience = min(_REGISTRY_SECONDS, settings.mlflow.timeout_seconds)
    mlflow = settings.mlflow.model_copy(update={"timeout_seconds": patience})
    return settings.model_copy(update={"mlflow": mlflow})


def registry_champion(settings: Settings) -> Champion:
    """The alias in MLflow. Raises AudiorecError where it does not answer."""
    registry = Registry(hasty(settings))

    def champion() -> tuple[str, dict[str, Any]] | None:
        version = registry.alias(CHAMPION)
        return None if version is None else (version.number, version.release)

    return champion


def pointed_champion(settings: Settings) -> Champion:
    """The pointer in the store, which `promote` writes after it moved the alias."""
    store = Store(settings.store.uri, settings.store.scratch)
    return lambda: read_pointer(store, settings.release.model_name)


@dataclass(frozen=True)
class Served:
    """A version that answers. Immutable: whoever holds it has one version from first to last."""

    recommender: Recommender
    release: str
    """Digest of the release, because a registry that was made anew counts from 1 again."""
    origin: str
    """Where it was learnt of: `registry`, `pointer` or `last good`."""
    since: float = field(default_factory=time.time)

    @property
    def version(self) -> str:
        return self.recommender.version


@dataclass(frozen=True)
class Refused:
    """A version that did not come to answer, and why."""

    version: str
    release: str
    reason: str
    retry_at: float


class Follower:
    """Keeps `current` at the champion.

    Args:
        settings: store, registry, and the folder for the last good version.
        champion: says who it is; by default what `serving.follow` says.
        told: called with "swapped", "refused" or "unreachable" when that happens, for metrics.
    """

    def __init__(
        self,
        settings: Settings,
        champion: Champion | None = None,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings, self._told = settings, told
        self._store = Store(settings.store.uri, settings.store.scratch)
        self.folder = Path(settings.services.home).absolute() / "serving" / settings.release.model_name
        self._champion = champion
        self._looking = threading.Lock()
        self.current: Served | None = None
        self._warmed: TextEncoder | None = None
        self.refused: Refused | None = None
        self.unreachable: str | None = None
        """What the registry said when it last did not answer; None while it does."""

    def look(self) -> None:
        """See who is champion and put that version in place; raises nothing that one may go on without.

        Raises:
            BadSettings: the registry's answer shows that the settings are wrong.
        """
        with self._looking:
            try:
                named = self._ask()
            except AudiorecError as error:
                if self.unreachable is None:
                    log.warning("the champion cannot be asked for: %s", _line(error))
                self.unreachable = _line(error)
                self._told("unreachable")
                if self.current is None:
                    self._start_without()
                return
            self.unreachable = None
            if named is None:
                if self.current is None:
                    log.info("there is no champion yet")
                return
            self._serve(*named, self._settings.serving.follow, self._store)

    def _ask(self) -> tuple[str, dict[str, Any]] | None:
        if self._champion is None:
            makers = {"registry": registry_champion, "pointer": pointed_champion}
            self._champion = makers[self._settings.serving.follow](self._settings)
        return self._champion()

    def _start_without(self) -> None:
        """The last good version from our own folder, else the one that the store points to."""
        try:
            kept = read_last_good(self.folder)
        except Corrupt as error:
            log.warning("%s", _line(error))
            kept = None
        if kept is not None and self._serve(*kept, "last good", Store(str(self.folder), self._store.scratch)):
            return
        try:
            pointed = read_pointer(self._store, self._settings.release.model_name)
        except (AudiorecError, OSError) as error:
            log.warning("the store's pointer cannot be read: %s", _line(error))
            return
        if pointed is not None:
            self._serve(*pointed, "pointer", self._store)

    def _serve(self, version: str, release: dict[str, Any], origin: str, store: Store) -> bool:
        """Load a version and let it answer; False if it is refused. Nothing to do if it answers already."""
        named = digest(release)
        if self.current is not None and (self.current.version, self.current.release) == (version, named):
            return True
        last = self.refused
        if last and (last.version, last.release) == (version, named) and time.monotonic() < last.retry_at:
            return False
        began = time.monotonic()
        try:
            with _unseen_by_the_collector():
                loaded = self._load(store, release, version)
        except Exception as error:  # whatever is wrong with it, the old one must go on
            retryable = not isinstance(error, AudiorecError) or error.retryable or isinstance(error, Corrupt)
            retry_at = time.monotonic() + _RETRY_SECONDS if retryable else np.inf
            self.refused = Refused(version, named, _line(error), retry_at)
            log.error("version %s is refused: %s", version, self.refused.reason)
            self._told("refused")
            return False
        self._warm(loaded.encoder)
        before = self.current.version if self.current else "none"
        self.current = Served(loaded, named, origin)
        self.refused = None
        self._told("swapped")
        log.info(
            "version %s of %s answers (before: %s); loaded from %s in %.1f s",
            version,
            loaded.as_of,
            before,
            origin,
            time.monotonic() - began,
        )
        return True

    def _warm(self, encoder: TextEncoder) -> None:
        """Load a text model that no version had before.

        Before the version answers: importing and loading it holds the interpreter for tenths of a second at a time, in
        which nobody would be answered. A version without its text model answers all the same.
        """
        if self._warmed is encoder or not self._settings.serving.warm_text:
            return
        self._warmed = encoder
        try:
            encoder.warm()
        except Exception as error:  # a request for a new title will say so again
            log.error("the text model cannot be loaded: %s", _line(error))

    def _load(self, store: Store, release: dict[str, Any], version: str) -> Recommender:
        bundle = Bundle.load(store, release)
        if Path(store.root) != self.folder.resolve():
            self.folder.mkdir(parents=True, exist_ok=True)
            store = keep(store, bundle, self.folder)
        encoder = self.current.recommender.encoder if self.current else None
        loaded = Recommender(store, bundle, version, encoder, Pseudonyms.read(self._settings))
        check(loaded)
        write_last_good(self.folder, version, bundle)
        forget_others(self.folder, bundle)
        return loaded


@contextlib.contextmanager
def _unseen_by_the_collector() -> Iterator[None]:
    """Keep the garbage collector from going through what is loaded, now and later.

    A release of 250,000 titles is half a million objects. To look at them all takes the collector some tenths of a
    second, in which nobody is answered. They need no collector: a version that was replaced is in no cycle, so it goes
    when the last request lets go of it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def check(recommender: Recommender) -> None:
    """Ask a version a few questions before anybody else does, which also warms it.

    Raises:
        BadData: it has no title to recommend, or a score is not finite.
    """
    examples = [user for user in recommender.example_users().values() if user is not None]
    questions = [Asked(), Asked(age=40.0), *(Asked(user_id=user, k=100) for user in examples)]
    for question in questions:
        titles = recommender.answer(question).titles
        if not titles and question.user_id is None:
            raise BadData(f"version {recommender.version} has no title to recommend to a stranger")
        if not all(np.isfinite(one.score) for one in titles):
            raise BadData(f"version {recommender.version} gives scores that are not finite")
    if len(recommender.books):
        recommender.similar("audiobook", recommender.item_id("audiobook", 0))
    if len(recommender.podcasts):
        recommender.similar("podcast", recommender.item_id("podcast", 0))


def _line(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:500]
