"""Pseudonyms: what stands for a user in all that is stored, and whose rows are left out for good.

Ids are replaced where the source tables are read, so nothing behind extract ever sees one. A pseudonym is
HMAC-SHA256 of the id under a key that lies outside the store: without the key nobody can go back, or try ids.
Digests of the source are taken after that, so results know by their fingerprints which key and which forgotten
users they were made with.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from audiorec.errors import BadSettings
from audiorec.settings import Settings
from audiorec.source import EVENT_TABLES, SourceTables
from audiorec.store import Store

FORGOTTEN = "forgotten"
"""Folder of the store with one file a forgotten user, named by the pseudonym."""
_POINTER = "pseudonyms.json"
_KEY_BYTES = 32
_LENGTH = 32
"""Hexadecimal digits kept of an HMAC: 128 bits."""


@dataclass(frozen=True)
class Pseudonyms:
    """Names users as the store does; `key` None where ids stay as given."""

    key: bytes | None

    @classmethod
    def of(cls, settings: Settings) -> Pseudonyms:
        """The pseudonyms that the settings' store is made with. Its first user makes the key.

        Raises:
            BadSettings: no key, or another one than the store was made with.
        """
        if settings.privacy.user_ids == "as_given":
            return cls(None)
        path = Path(settings.privacy.key_file)
        store = Store(settings.store.uri, settings.store.scratch)
        pointer = store.read_pointer(_POINTER)
        expected = json.loads(pointer)["key"] if pointer else None
        if not path.exists():
            if expected:
                raise BadSettings(
                    f"privacy.key_file {path} does not exist, but the store at {settings.store.uri} was made with a key "
                    f"({expected}); put that key's file back, or start a new store"
                )
            _make_key(path)
        found = cls.read(settings)
        if expected is None:
            store.write_pointer(_POINTER, (json.dumps({"key": found.key_name}) + "\n").encode())
        elif expected != found.key_name:
            raise BadSettings(
                f"privacy.key_file {path} holds another key ({found.key_name}) than the store at {settings.store.uri} was "
                f"made with ({expected}); give the right key, or start a new store: under two keys one user would be two"
            )
        return found

    @classmethod
    def read(cls, settings: Settings) -> Pseudonyms:
        """The same without a look at the store, for who must answer while it is away.

        Raises:
            BadSettings: the file is missing or holds no key.
        """
        if settings.privacy.user_ids == "as_given":
            return cls(None)
        path = Path(settings.privacy.key_file)
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            key = b""
        if len(key) != _KEY_BYTES:
            raise BadSettings(
                f"privacy.key_file {path} holds no key; expected {2 * _KEY_BYTES} hexadecimal digits, such as "
                "`openssl rand -hex 32` prints"
            )
        return cls(key)

    @property
    def key_name(self) -> str:
        """Says which key it is and nothing of what it is: the key has 256 random bits."""
        return hashlib.sha256(b"audiorec key " + (self.key or b"")).hexdigest()[:12]

    def name(self, user_id: str) -> str:
        """The pseudonym of an id as the source has it; white space around it does not count."""
        bare = user_id.strip()
        if self.key is None:
            return bare
        return hmac.new(self.key, bare.encode(), hashlib.sha256).hexdigest()[:_LENGTH]


def _make_key(path: Path) -> None:
    """A new key, readable by its owner only; of two that make one at once, the first wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(_KEY_BYTES) + "\n")
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def forgotten(store: Store) -> frozenset[str]:
    """Pseudonyms of the users whose rows no build may see again."""
    return frozenset(name.removesuffix(".json") for name in store.keys(FORGOTTEN))


def hide_users(source: SourceTables, settings: Settings) -> None:
    """Put pseudonyms in the place of ids in all source views, and leave out the rows of forgotten users.

    Blank ids become NULL, for extract to set aside.

    Raises:
        BadSettings: see `Pseudonyms.of`.
        duckdb.Error: a source table cannot be read to its end.
    """
    pseudonyms = Pseudonyms.of(settings)
    gone = forgotten(Store(settings.store.uri, settings.store.scratch))
    if pseudonyms.key is None and not gone:
        return
    connection = source.connection
    tables = ("users", *EVENT_TABLES.values())
    every_id = " UNION ALL ".join(f"SELECT user_id FROM source.{table}" for table in tables)  # noqa: S608 - our own names
    ids = connection.execute(
        f"SELECT DISTINCT TRIM(user_id) AS user_id FROM ({every_id}) WHERE TRIM(user_id) != ''"  # noqa: S608 - the same
    ).fetchnumpy()["user_id"]
    names = [pseudonyms.name(str(user_id)) for user_id in ids]
    known = pa.table(
        {
            "user_id": pa.array([str(user_id) for user_id in ids], pa.string()),
            "pseudonym": pa.array(names, pa.string()),
            "forgotten": pa.array([name in gone for name in names], pa.bool_()),
        }
    )
    connection.register("known_users", known)
    connection.execute("CREATE TEMP TABLE pseudonyms AS SELECT * FROM known_users")
    connection.unregister("known_users")
    for table in tables:
        connection.execute(f"ALTER VIEW source.{table} RENAME TO given_{table}")
        connection.execute(
            f"""
            CREATE VIEW source.{table} AS
            SELECT given.* REPLACE (pseudonyms.pseudonym AS user_id)
            FROM source.given_{table} AS given LEFT JOIN pseudonyms ON pseudonyms.user_id = TRIM(given.user_id)
            WHERE pseudonyms.forgotten IS NOT TRUE
            """  # noqa: S608 - the same
        )
