"""Addresses of Data Docs and runbooks, and that nothing else can be had."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from audiorec.oncall import pages
from audiorec.settings import Settings, load_settings

UI = "http://127.0.0.1:8080"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(store={"uri": str(tmp_path / "store")})


def test_a_file_of_the_data_docs_becomes_an_address(settings: Settings, tmp_path: Path):
    links = {
        "Data Docs": f"{tmp_path}/store/data_docs/2026-11-23/ab 12/index.html",
        "As a URL": f"file://{tmp_path}/store/data_docs/x.html",
        "MLflow run": "http://127.0.0.1:5000/#/experiments/1",
        "Another file": "/etc/passwd",
    }
    assert pages.browsable(links, settings, UI) == {
        "Data Docs": f"{UI}/recommender/data-docs/2026-11-23/ab%2012/index.html",
        "As a URL": f"{UI}/recommender/data-docs/x.html",
        "MLflow run": "http://127.0.0.1:5000/#/experiments/1",
        "Another file": "/etc/passwd",
    }


def test_data_docs_of_an_object_store(settings: Settings):
    remote = load_settings(store={"uri": "s3://bucket/store/"})
    links = {"Data Docs": "s3://bucket/store/data_docs/d/index.html"}
    assert pages.browsable(links, remote, UI) == {"Data Docs": f"{UI}/recommender/data-docs/d/index.html"}


@pytest.mark.parametrize("path", ["", "/", "../x", "a/../../x", "/etc/passwd", "a/..", "a\\..\\x"])
def test_no_path_leads_out(path: str):
    with pytest.raises(ValueError, match="no path below the Data Docs"):
        pages.inside(path)


def test_a_path_inside_is_kept():
    assert pages.inside("2026-11-23/ab12/static/styles/x.css") == "2026-11-23/ab12/static/styles/x.css"


def test_runbooks_are_in_the_ui_unless_the_settings_name_a_place(settings: Settings):
    assert pages.with_runbooks(settings, UI).alerts.runbook_base == f"{UI}/recommender/runbooks"
    assert pages.with_runbooks(settings, None).alerts.runbook_base == "docs/runbooks"
    elsewhere = load_settings(alerts={"runbook_base": "https://wiki/runbooks"})
    assert pages.with_runbooks(elsewhere, UI).alerts.runbook_base == "https://wiki/runbooks"


def test_a_runbook_is_a_page_and_its_links_work():
    page = pages.runbook_page("RUN-FAILED.md")
    assert page is not None
    assert "<h2>What to do</h2>" in page
    for other in re.findall(r'href="([^"]+)"', page):
        assert pages.runbook_page(other) is not None
    assert pages.runbook_page("../../pyproject") is None
    assert pages.runbook_page("NO-SUCH") is None


def test_the_ui_is_found_in_a_log_address():
    assert pages.ui_address("https://air.example.org/prefix/dags/d/runs/r/tasks/t?try_number=1") == (
        "https://air.example.org/prefix"
    )
    assert pages.ui_address(None) is None
