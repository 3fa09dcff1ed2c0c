"""Pseudonyms: what they are, whose key it is, what they leave of an id, and that a forgotten user's rows are gone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from small_source import AS_OF, clean_tables, settings_for, write_flat

from audiorec.errors import BadSettings
from audiorec.pseudonyms import FORGOTTEN, Pseudonyms, forgotten
from audiorec.runner import run_task
from audiorec.settings import Settings
from audiorec.store import Manifest, Store
from audiorec.taskio import INTERACTIONS

HIDDEN = {"user_ids": "pseudonyms"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    connection = clean_tables()
    # One id in two spellings, and a blank one, which extract sets aside.
    connection.execute("UPDATE music_events SET user_id = ' u7 ' WHERE user_id = 'u7'")
    connection.execute(
        f"INSERT INTO music_events VALUES ('  ', 't1', 'stream', TIMESTAMP '{AS_OF} 09:00:00', 300)"
    )
    return write_flat(connection, tmp_path / "source")


def store_of(settings: Settings) -> Store:
    return Store(settings.store.uri, settings.store.scratch)


def extracted(settings: Settings) -> Manifest:
    return store_of(settings).read_uri(run_task("extract", settings, AS_OF)["manifest"])


def days(manifest: Manifest) -> dict[str, str]:
    """Fingerprints of the day partitions."""
    return {
        name.partition("/")[2]: fingerprint
        for name, fingerprint in manifest.inputs.items()
        if name.startswith(INTERACTIONS)
    }


def tables(settings: Settings, manifest: Manifest) -> dict[str, pd.DataFrame]:
    """All files of an extract and of its days."""
    store = store_of(settings)
    found = {name: pd.read_parquet(store.open(manifest, name)) for name in manifest.files}
    for day, fingerprint in days(manifest).items():
        partition = store.find(INTERACTIONS, day, fingerprint)
        assert partition is not None
        found |= {f"{day}/{name}": pd.read_parquet(store.open(partition, name)) for name in partition.files}
    return found


def test_a_pseudonym_is_the_hmac_of_the_bare_id():
    # RFC 4231, test case 2: key "Jefe", data "what do ya want for nothing?".
    assert Pseudonyms(b"Jefe").name(" what do ya want for nothing? ") == "5bdcc146bf60754e6a042426089575c7"
    assert Pseudonyms(None).name(" u1") == "u1"


def test_no_id_is_left_in_anything_that_extract_writes(source: Path, tmp_path: Path):
    settings = settings_for(source, tmp_path, privacy=HIDDEN)
    manifest = extracted(settings)
    plain = settings_for(source, tmp_path / "plain")
    as_given = tables(plain, extracted(plain))
    pseudonyms = Pseudonyms.of(settings)
    for name, table in tables(settings, manifest).items():
        raw = as_given[name]
        assert len(table) == len(raw), name
        if "user_id" in table:
            expected = sorted(pseudonyms.name(one) for one in raw["user_id"].dropna())
            assert sorted(table["user_id"].dropna()) == expected, name
    blank = tables(settings, manifest)[f"{AS_OF}/rejects.parquet"]
    assert blank["reason"].tolist() == ["null_user_id"]


def test_the_key_is_made_once_and_is_not_in_the_store(source: Path, tmp_path: Path):
    settings = settings_for(source, tmp_path, privacy=HIDDEN)
    with ThreadPoolExecutor(8) as pool:
        keys = {found.key for found in pool.map(lambda _: Pseudonyms.of(settings), range(16))}
    assert len(keys) == 1
    path = Path(settings.privacy.key_file)
    assert path.stat().st_mode & 0o777 == 0o600
    extracted(settings)
    text = path.read_text().strip()
    for file in Path(settings.store.uri).rglob("*"):
        if file.is_file():
            assert text.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist, but the store"),
        ("short", "holds no key; expected 64 hexadecimal digits"),
        ("ab" * 32, "holds another key"),
    ],
)
def test_a_store_is_never_continued_under_another_key(
    content: str | None, message: str, source: Path, tmp_path: Path
):
    settings = settings_for(source, tmp_path, privacy=HIDDEN)
    Pseudonyms.of(settings)
    path = Path(settings.privacy.key_file)
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadSettings, match=message):
        run_task("extract", settings, AS_OF)


def test_another_key_is_another_extract(source: Path, tmp_path: Path):
    one, other = (settings_for(source, tmp_path / name, privacy=HIDDEN) for name in ("one", "other"))
    assert extracted(one).fingerprint != extracted(other).fingerprint


def test_a_forgotten_user_is_gone_and_only_touched_days_are_made_again(source: Path, tmp_path: Path):
    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE t AS SELECT * FROM '{source}/audiobook_events.parquet'")
    rare = f"INSERT INTO t VALUES ('rare', 'b1', 'stream', TIMESTAMP '{AS_OF} 10:00:00', 300)"
    connection.execute(rare)
    connection.execute(f"COPY t TO '{source}/audiobook_events.parquet'")
    settings = settings_for(source, tmp_path, privacy=HIDDEN)
    before = extracted(settings)
    name = Pseudonyms.of(settings).name("rare")
    assert any(name in set(t.get("user_id", [])) for t in tables(settings, before).values())

    folder = Path(settings.store.uri) / FORGOTTEN
    folder.mkdir()
    (folder / f"{name}.json").write_text(json.dumps({"since": "2026-02-11"}))
    assert forgotten(store_of(settings)) == {name}
    after = extracted(settings)
    assert after.fingerprint != before.fingerprint
    for table in tables(settings, after).values():
        assert name not in set(table.get("user_id", []))
    changed = {day for day, fingerprint in days(after).items() if days(before)[day] != fingerprint}
    assert changed == {AS_OF.isoformat()}
    # Nobody else lost a row.
    kept = tables(settings, before)["users.parquet"].merge(tables(settings, after)["users.parquet"])
    assert len(kept) == len(tables(settings, before)["users.parquet"])


def test_forgetting_works_where_ids_stay_as_given(source: Path, tmp_path: Path):
    settings = settings_for(source, tmp_path)
    folder = Path(settings.store.uri) / FORGOTTEN
    folder.mkdir(parents=True)
    (folder / "u7.json").write_text("{}")
    for table in tables(settings, extracted(settings)).values():
        assert not {"u7", " u7 "} & set(table.get("user_id", []))
