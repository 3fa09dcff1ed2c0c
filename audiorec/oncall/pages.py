"""Addresses that a browser can open, for what tasks leave as files: Data Docs and runbooks.

The pages themselves are served by the plugin in `serving/plugins/`, behind Airflow's login.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from audiorec.settings import Settings

PREFIX = "/recommender"
DATA_DOCS = "data_docs"
RUNBOOKS = Path(__file__).resolve().parents[2] / "docs" / "runbooks"


def browsable(links: Mapping[str, str], settings: Settings, ui: str) -> dict[str, str]:
    """Links as a browser wants them: a file below the store's Data Docs becomes an address of the UI.

    Args:
        ui: the Airflow UI's address, without a slash at its end.
    """
    root = f"{absolute(settings.store.uri)}/{DATA_DOCS}/"
    served = {}
    for name, address in links.items():
        plain = address.removeprefix("file://")
        inside = plain.startswith(root)
        served[name] = f"{ui}{PREFIX}/data-docs/{quote(plain.removeprefix(root))}" if inside else address
    return served


def with_runbooks(settings: Settings, ui: str | None) -> Settings:
    """The settings with runbooks that can be clicked: the UI's own pages if they name only a folder."""
    if "://" in settings.alerts.runbook_base or not ui:
        return settings
    alerts = settings.alerts.model_copy(update={"runbook_base": f"{ui}{PREFIX}/runbooks"})
    return settings.model_copy(update={"alerts": alerts})


def ui_address(log_url: str | None) -> str | None:
    """The UI's address, out of a task's log address."""
    return log_url.split("/dags/")[0] if log_url else None


def absolute(location: str) -> str:
    """A folder's absolute path; an address with a scheme as it is. No slash at the end."""
    return (location if "://" in location else str(Path(location).absolute())).rstrip("/")


def inside(path: str) -> str:
    """A path below the Data Docs, checked.

    Raises:
        ValueError: it leads out of them, or is none.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or any(part in ("..", "") or "\\" in part for part in parts):
        raise ValueError(f"{path!r} is no path below the Data Docs")
    return "/".join(parts)


def runbook_page(code: str) -> str | None:
    """A runbook as HTML; None if there is none of that code."""
    code = code.removesuffix(".md")
    known = {page.stem: page for page in RUNBOOKS.glob("*.md")}
    if code not in known:
        return None
    from markdown_it import MarkdownIt

    body = (
        MarkdownIt("commonmark", {"html": False})
        .enable("table")
        .render(known[code].read_text(encoding="utf-8"))
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(code)}</title>'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
        "code,pre{background:#f3f3f3;padding:.1em .3em}pre{padding:.7em;overflow:auto}"
        f"td,th{{text-align:left;padding-right:1rem}}</style>{body}</html>"
    )
