"""A version's manifests and the pointer to the champion: what was altered or lost is refused by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from audiorec.champion import Bundle, describe, pointer_name, read_pointer, write_pointer
from audiorec.errors import Corrupt
from audiorec.recommend import Recommender
from audiorec.store import MANIFEST, Store

if TYPE_CHECKING:
    from released import Releases

MODEL_NAME = "audiobook_recommender"


@pytest.fixture
def copied(releases: Releases, tmp_path: Path) -> tuple[Any, Store, dict[str, Any]]:
    """Settings, store and the release of the first date, in a copy of the store."""
    settings = releases.copy(tmp_path)
    as_of = releases.dates[0]
    release = describe(as_of, dict(releases.inputs(as_of, settings)))
    return settings, Store(settings.store.uri, settings.store.scratch), release


def manifest_path(store: Store, named: dict[str, str]) -> Path:
    return Path(store.root) / named["dataset"] / named["key"] / named["fingerprint"] / MANIFEST


def test_a_release_names_every_manifest_with_its_hash(copied: Any):
    _, store, release = copied
    assert list(release["manifests"]) == [
        "build_graph",
        "build_index",
        "embed_music",
        "embed_text",
        "evaluate",
        "extract",
        "refresh",
        "train_hgnn",
        "train_two_tower",
    ]
    for named in release["manifests"].values():
        assert named["sha256"] == hashlib.sha256(manifest_path(store, named).read_bytes()).hexdigest()
    bundle = Bundle.load(store, release)
    assert describe(bundle.as_of, bundle.manifests) == release
    # Plain JSON, so the tag of a version and the pointer hold the same.
    assert json.loads(json.dumps(release)) == release


def test_the_pointer_gives_back_what_was_written(copied: Any):
    _, store, release = copied
    assert read_pointer(store, MODEL_NAME) is None
    write_pointer(store, MODEL_NAME, "7", release)
    assert read_pointer(store, MODEL_NAME) == ("7", release)
    write_pointer(store, MODEL_NAME, "8", release)
    assert read_pointer(store, MODEL_NAME) == ("8", release)


def test_an_altered_manifest_is_refused(copied: Any):
    _, store, release = copied
    path = manifest_path(store, release["manifests"]["refresh"])
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace('"users": ', '"users": 1'))
    with pytest.raises(Corrupt, match="altered or damaged"):
        Bundle.load(store, release)


def test_an_altered_manifest_is_refused_even_with_a_hash_of_its_own(copied: Any):
    """Who rewrites a manifest can rewrite the hash inside it, but not the one in the release."""
    _, store, release = copied
    named = release["manifests"]["refresh"]
    manifest = store.find(named["dataset"], named["key"], named["fingerprint"])
    assert manifest is not None
    forged = manifest.model_copy(update={"facts": {"counts": {}}})
    path = manifest_path(store, named)
    path.unlink()
    path.write_bytes(forged.to_bytes())
    assert store.find(named["dataset"], named["key"], named["fingerprint"]) == forged
    with pytest.raises(
        Corrupt, match=r"manifest of refresh/2026-11-20/\w+ is not the one that the release of 2026-11-20"
    ):
        Bundle.load(store, release)


def test_a_manifest_that_is_gone_is_named(copied: Any):
    _, store, release = copied
    manifest_path(store, release["manifests"]["build_index"]).unlink()
    with pytest.raises(Corrupt, match=r"needs build_index/2026-11-20/\w+, which the store .* lacks"):
        Bundle.load(store, release)


def test_an_altered_file_is_refused_when_it_is_served(copied: Any):
    settings, store, release = copied
    write_pointer(store, MODEL_NAME, "7", release)
    assert Recommender.champion(settings).version == "7"
    vectors = store.open(Bundle.load(store, release).manifests["refresh"], "item_vectors.npy")
    content = bytearray(vectors.read_bytes())
    content[len(content) // 2] ^= 1
    vectors.unlink()
    vectors.write_bytes(content)
    with pytest.raises(Corrupt, match=r"item_vectors\.\w+\.npy has sha256"):
        Recommender.champion(settings)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '{"version": "7"}',
        '{"version": "7", "release": []}',
        '{"version": "7", "release": {"manifests": {}}}',
        '{"version": "7", "release": {"as_of": "yesterday", "manifests": {}}}',
        '{"version": "7", "release": {"as_of": "2026-11-20", "manifests": {"extract": {"key": "x"}}}}',
        '{"version": "7", "release": {"as_of": "2026-11-20", "manifests": ["extract"]}}',
        '{"release": {"as_of": "2026-11-20", "manifests": {}}}',
    ],
)
def test_an_unreadable_pointer_says_what_to_do(content: str, tmp_path: Path):
    store = Store(str(tmp_path / "store"), tmp_path / "scratch")
    store.write_pointer(pointer_name(MODEL_NAME), content.encode())
    with pytest.raises(
        Corrupt,
        match=r"champion-audiobook_recommender\.json is unreadable; run promote again for the champion's date",
    ):
        read_pointer(store, MODEL_NAME)
