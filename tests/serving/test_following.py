"""Following the champion: swaps under load, versions that are refused, and starts without a registry."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from running import KEY, NO_KEY_LIMIT, running, wait_for

from audiorec.champion import Bundle, describe, write_pointer
from audiorec.errors import Unavailable
from audiorec.new_titles import TextEncoder
from audiorec.recommend import Recommender
from audiorec.runner import run_task
from audiorec.store import Store
from serving.client import RecommendationClient, RecommendationRequest
from serving.following import Follower, registry_champion

if TYPE_CHECKING:
    from released import Releases

pytestmark = pytest.mark.long

MODEL_NAME = "audiobook_recommender"


class Setup:
    """Settings over a copy of the store, and the two dates' releases in it."""

    def __init__(self, releases: Releases, work: Path, **serving: Any) -> None:
        own = {"follow": "pointer", "poll_seconds": 0.1, **NO_KEY_LIMIT, **serving}
        self.settings = releases.copy(work, services={"home": str(work / "home")}, serving=own)
        self.store = Store(self.settings.store.uri, self.settings.store.scratch)
        self.releases = [
            describe(as_of, dict(releases.inputs(as_of, self.settings))) for as_of in releases.dates
        ]

    def point(self, version: str, number: int) -> None:
        write_pointer(self.store, MODEL_NAME, version, self.releases[number])

    def file(self, number: int, task: str, name: str) -> Path:
        return self.store.open(Bundle.load(self.store, self.releases[number]).manifests[task], name)


@pytest.fixture
def setup(releases: Releases, tmp_path: Path) -> Setup:
    return Setup(releases, tmp_path)


def test_swaps_under_load_lose_no_request_and_mix_no_versions(setup: Setup):
    """Six swaps, forth and back, while four clients ask: every answer is that of one version, whole."""
    setup.point("1", 0)
    with running(setup.settings) as there:
        user = str(there.service.follower.current.recommender.example_users()["a warm user"])  # type: ignore[union-attr]
        requests = [RecommendationRequest(user_id=user, k=8), RecommendationRequest(country="DE", k=8)]
        expected: dict[str, Any] = {"1": there.client.recommend_batch(requests)}
        stop, failures, answers = threading.Event(), [], Counter[str]()

        def ask() -> None:
            with RecommendationClient(there.address, KEY, timeout_seconds=60) as client:
                while not stop.is_set():
                    try:
                        got = client.recommend_batch(requests)
                    except Exception as error:
                        failures.append(error)
                        continue
                    (version,) = {one.model_version for one in got}
                    answers[version] += 1
                    known = expected.setdefault(version, got)
                    if got != known:
                        failures.append(AssertionError(f"version {version} answered in two ways"))

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for one in clients:
            one.start()
        for number in range(1, 7):
            version = str(1 + number % 2)
            setup.point(version, number % 2)
            wait_for(lambda wanted=version: there.client.readiness().model_version == wanted)  # type: ignore[misc]
            time.sleep(0.2)
        stop.set()
        for one in clients:
            one.join()
        assert failures == []
        assert min(answers["1"], answers["2"]) > 3
        assert expected["1"][0].data_date < expected["2"][0].data_date
        assert expected["1"] != expected["2"]


def test_a_replaced_version_goes_without_the_garbage_collector(setup: Setup):
    """It is hidden from the collector (a look at it stops all requests), so it must be in no cycle."""
    setup.point("1", 0)
    follower = Follower(setup.settings)
    gc.disable()
    try:
        follower.look()
        replaced = weakref.ref(follower.current.recommender)  # type: ignore[union-attr]
        arrays = weakref.ref(follower.current.recommender.item_vectors)  # type: ignore[union-attr]
        assert not gc.isenabled(), "what was switched off stays off"
        setup.point("2", 1)
        follower.look()
        assert follower.current is not None
        assert follower.current.version == "2"
        assert replaced() is None
        assert arrays() is None
    finally:
        gc.enable()
        gc.unfreeze()


def test_requests_are_never_stopped_to_collect_a_release(setup: Setup):
    setup.point("1", 0)
    follower = Follower(setup.settings)
    try:
        follower.look()
        assert gc.isenabled()
        looked_at = gc.get_objects()
        ids = follower.current.recommender._ids["audiobook"]  # type: ignore[union-attr]
        assert not any(one is ids for one in looked_at)
    finally:
        gc.unfreeze()


def test_a_damaged_version_is_refused_and_the_old_one_goes_on(setup: Setup):
    """One flipped bit in one file of the new version."""
    setup.point("1", 0)
    follower = Follower(setup.settings)
    follower.look()
    before = follower.current
    assert before is not None
    path = setup.file(1, "refresh", "item_vectors.npy")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.unlink()  # the file is shared with other tests by a hard link
    path.write_bytes(content)
    setup.point("2", 1)
    follower.look()
    assert follower.current is before
    assert follower.refused is not None
    assert follower.refused.version == "2"
    assert "sha256" in follower.refused.reason
    # It is not loaded again and again; the next version is looked at anew.
    follower.look()
    assert follower.current is before
    setup.point("3", 0)
    follower.look()
    assert follower.current is not None
    assert (follower.current.version, follower.refused) == ("3", None)


def test_a_version_whose_scores_are_not_finite_is_refused(setup: Setup, monkeypatch: pytest.MonkeyPatch):
    setup.point("1", 0)
    follower = Follower(setup.settings)
    follower.look()
    vector = Recommender.vector
    monkeypatch.setattr(Recommender, "vector", lambda self, profile: vector(self, profile) * float("nan"))
    setup.point("2", 1)
    follower.look()
    assert follower.current is not None
    assert follower.current.version == "1"
    assert follower.refused is not None
    assert "not finite" in follower.refused.reason


def test_without_a_registry_and_a_store_the_last_good_version_answers(setup: Setup, tmp_path: Path):
    setup.point("1", 0)
    first = Follower(setup.settings)
    first.look()
    setup.point("2", 1)
    first.look()
    kept = sorted(path.parent.name for path in first.folder.glob("refresh/*/*"))
    assert kept == [setup.releases[1]["as_of"]]  # the one before is gone

    def away() -> Any:
        raise Unavailable("MLflow does not answer")

    (tmp_path / "store").rename(tmp_path / "elsewhere")
    again = Follower(setup.settings, away)
    again.look()
    assert again.current is not None
    assert (again.current.version, again.current.origin) == ("2", "last good")
    assert again.unreachable == "Unavailable: MLflow does not answer"
    # The registry is back and says the same: nothing is loaded.
    served = again.current
    again._champion = lambda: ("2", setup.releases[1])
    again.look()
    assert again.current is served
    assert again.unreachable is None


def test_without_anything_kept_the_stores_pointer_names_the_version(setup: Setup):
    def away() -> Any:
        raise Unavailable("MLflow does not answer")

    follower = Follower(setup.settings, away)
    follower.look()
    assert follower.current is None
    setup.point("5", 0)
    follower.look()
    assert follower.current is not None
    assert (follower.current.version, follower.current.origin) == ("5", "pointer")


def test_a_damaged_last_good_version_is_not_used(setup: Setup):
    setup.point("1", 0)
    first = Follower(setup.settings)
    first.look()
    (vectors,) = first.folder.glob("refresh/*/*/item_vectors.*")
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.unlink()
    vectors.write_bytes(content)

    def away() -> Any:
        raise Unavailable("MLflow does not answer")

    (Path(setup.store.root) / f"champion-{MODEL_NAME}.json").unlink()
    again = Follower(setup.settings, away)
    again.look()
    assert again.current is None
    assert again.refused is not None
    assert "sha256" in again.refused.reason


@pytest.mark.parametrize("warm", [True, False])
def test_the_text_model_is_loaded_before_anybody_asks_for_it_and_once(
    releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: bool
):
    warmed: list[TextEncoder] = []
    answering: list[bool] = []

    def load(encoder: TextEncoder) -> None:
        warmed.append(encoder)
        answering.append(follower.current is not None)
        raise OSError("a model that cannot be read keeps no version from answering")

    monkeypatch.setattr(TextEncoder, "warm", load)
    setup = Setup(releases, tmp_path, warm_text=warm)
    setup.point("1", 0)
    follower = Follower(setup.settings)
    follower.look()
    setup.point("2", 1)
    follower.look()
    assert follower.current is not None and follower.current.version == "2"
    assert warmed == [follower.current.recommender.encoder] * warm
    assert answering == [False] * warm


def test_warming_makes_the_model_ready(releases: Releases):
    encoder = TextEncoder(releases.settings().text)
    encoder.warm()
    assert "_model" in vars(encoder)
    assert encoder.encode(["a murder on an island"]).any()


def test_not_ready_until_there_is_a_champion(setup: Setup):
    with running(setup.settings, ready=False) as there:
        assert there.client.readiness().ready is False
        with pytest.raises(Exception, match="503: no release is loaded yet"):
            there.client.recommend(k=1)
        setup.point("1", 0)
        wait_for(lambda: there.client.readiness().ready)
        assert there.client.recommend(k=1).model_version == "1"


def test_the_registrys_alias_is_followed(
    releases: Releases, tmp_path: Path, mlflow_uri: str, mlflow_client: MlflowClient
):
    """With a real MLflow: promoted, taken back by hand, promoted again; and the server's end changes nothing."""
    name = "followed_model"
    settings = releases.copy(
        tmp_path,
        mlflow={"uri": mlflow_uri},
        release={"model_name": name},
        services={"home": str(tmp_path / "home")},
        serving={"follow": "registry"},
    )
    for as_of in releases.dates:
        run_task("promote", settings, as_of, options={"promote": "force", "run_type": "manual"})
    follower = Follower(settings)
    follower.look()
    assert follower.current is not None
    champion = mlflow_client.get_model_version_by_alias(name, "champion")
    assert follower.current.version == champion.version
    assert follower.current.recommender.as_of == releases.dates[1]
    earlier = next(
        entry
        for entry in mlflow_client.search_model_versions(f"name='{name}'")
        if entry.tags["as_of"] == str(releases.dates[0])
    )
    mlflow_client.set_registered_model_alias(name, "champion", earlier.version)
    follower.look()
    assert (follower.current.version, follower.current.recommender.as_of) == (
        earlier.version,
        releases.dates[0],
    )
    gone = settings.model_copy(
        update={
            "mlflow": settings.mlflow.model_copy(update={"uri": "http://127.0.0.1:9", "timeout_seconds": 0.5})
        }
    )
    follower._champion = registry_champion(gone)
    before = follower.current
    follower.look()
    assert follower.current is before
    assert follower.unreachable is not None
    assert "did not answer" in follower.unreachable


def test_what_is_kept_shares_its_bytes_with_the_store(setup: Setup):
    setup.point("1", 0)
    follower = Follower(setup.settings)
    follower.look()
    (vectors,) = follower.folder.glob("refresh/*/*/item_vectors.*")
    assert vectors.samefile(setup.file(0, "refresh", "item_vectors.npy"))
