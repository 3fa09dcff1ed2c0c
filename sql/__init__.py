"""The SQL of the chain, one output table a file, plain DuckDB with named parameters (`$name`)."""

from __future__ import annotations

from importlib.resources import files


def read_sql(name: str) -> str:
    """The text of `sql/NAME.sql`.

    Call it with a literal: the code fingerprint of a task includes every SQL file that a module
    names in such a call (`audiorec/fingerprint.py`), so an edited query makes the right tasks stale.
    """
    return files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
