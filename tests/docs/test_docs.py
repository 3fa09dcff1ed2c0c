"""What is written for people: links lead somewhere, every task, setting and alert code has its page."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from audiorec import settings_docs
from audiorec.chain import CHAIN
from audiorec.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CODE_ROOMS = ("audiorec", "tasks", "expectations", "models", "dags")

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_CODE_NAME = re.compile(r"(?:DQ|TASK|RUN|AF|PROMOTE|TRAIN|DATA|BAD|NO)-[A-Z]+(?:-[A-Z]+)*")
MACHINE_PATH = re.compile(r"(?<![\w.~/}-])/(?:home|root|Users|tmp|work|mnt|var|opt|srv)/\w+")


def markdown_files() -> list[Path]:
    """Every page that is part of the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:  # not a clone: an unpacked archive
        skipped = {".venv", ".audiorec", ".git"}
        found = [page.relative_to(ROOT) for page in ROOT.rglob("*.md")]
        return [ROOT / page for page in found if not skipped & set(page.parts)]
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def slug(heading: str) -> str:
    """The anchor that a heading gets on the usual hosts."""
    plain = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(match) for match in re.findall(r"^#+ +(.+)$", text, re.MULTILINE)}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(target)
    return broken


def string_constants(room: str) -> Iterator[str]:
    """Every string literal of a room's modules, docstrings and comments left out."""
    for module in sorted((ROOT / room).rglob("*.py")):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        docstrings = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                yield node.value


def alert_codes() -> set[str]:
    """Codes that the code itself gives: literals that are nothing but a code."""
    found = set()
    for room in CODE_ROOMS:
        found |= {text for text in string_constants(room) if _CODE_NAME.fullmatch(text)}
    from audiorec.launcher import KINDS

    return found | set(KINDS)


@pytest.mark.parametrize("page", markdown_files(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path):
    assert broken_links(page) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path: Path):
    (tmp_path / "there.md").write_text("# Title\n\n## Some `code` here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#some-code-here) [c](https://example.org/x)\n"
        "[d](gone.md) [e](there.md#gone)\n"
        "```\n[f](in_a_fence.md)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "there.md#gone"]


@pytest.mark.parametrize("page", markdown_files(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_path_of_somebodys_machine(page: Path):
    assert MACHINE_PATH.findall(page.read_text(encoding="utf-8")) == []


def test_a_machine_path_is_found():
    for text in ("see /home/ann/x", "`/tmp/run`", "in (/Users/bob)"):
        assert MACHINE_PATH.search(text), text
    for text in ("{home}/tmp/x", "audiorec/tmp/x", "https://example.org/home/x", "~/opt/x"):
        assert not MACHINE_PATH.search(text), text


def test_every_task_has_a_page_and_every_page_a_task():
    pages = {page.stem for page in (DOCS / "tasks").glob("*.md")} - {"README"}
    assert pages == set(CHAIN)
    index = (DOCS / "tasks" / "README.md").read_text(encoding="utf-8")
    for name in CHAIN:
        assert f"[{name}]({name}.md)" in index


@pytest.mark.parametrize("name", CHAIN)
def test_a_tasks_page_says_how_to_run_it_and_what_it_hashes(name: str):
    text = (DOCS / "tasks" / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    for heading in (
        "## Reads",
        "## Writes",
        "## Settings it hashes",
        "## What is normal",
        "## What fails",
        "## Alone",
    ):
        assert f"\n{heading}\n" in text, heading
    assert f"python -m tasks.{name} --as-of " in text
    hashed = re.search(r"## Settings it hashes\n\n(.+?)\n\n", text, re.DOTALL)
    assert hashed is not None
    assert set(re.findall(r"`\[(\w+)\]`", hashed[1])) == set(CHAIN[name].settings)


def test_every_manifest_that_a_task_reads_is_named_on_its_page():
    for name, task in CHAIN.items():
        text = (DOCS / "tasks" / f"{name}.md").read_text(encoding="utf-8")
        section = text.split("## Reads\n")[1].split("\n## ")[0]
        if name == "promote":
            assert "except `validate`" in section
            assert set(task.inputs) == set(CHAIN) - {"validate", "promote"}
            continue
        for read in task.inputs:
            assert f"`{read}`" in section, (name, read)


def test_the_settings_page_is_what_the_settings_say():
    committed = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert committed == settings_docs.page(), f"run: {settings_docs.COMMAND}"


def test_the_settings_page_is_what_the_command_prints():
    printed = subprocess.run(
        [sys.executable, "-m", "audiorec.settings_docs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert printed.stdout == settings_docs.page()


def test_every_setting_is_on_the_page_with_a_meaning():
    text = settings_docs.page()
    fields = list(settings_docs.documented_fields())
    assert {group for group, _ in fields if group} == set(Settings.model_fields) - {"profile", "recipe"}
    for group, field in fields:
        section = text.split(f"\n## {group}\n")[1].split("\n## ")[0] if group else text
        row = re.search(rf"^\| `{field}` \|.*\|$", section, re.MULTILINE)
        assert row is not None, f"{group}.{field}"
        cells = [cell.strip() for cell in row[0].strip("|").split("|")]
        assert len(cells[-1]) > 3, f"{group}.{field} has no text"
        assert cells[-2] in ("paper", "measured", "choice"), f"{group}.{field} has no origin"


def test_every_alert_code_has_a_runbook_and_every_runbook_a_line_in_the_index():
    pages = {page.stem for page in (DOCS / "runbooks").glob("*.md")} - {"README"}
    codes = alert_codes()
    assert {"TASK-OOM", "BAD-DATA", "DQ-EMPTY-DAY", "DATA-LATE", "RUN-FAILED", "NO-RECEIPT"} <= codes
    assert sorted(codes - pages) == []
    index = (DOCS / "runbooks" / "README.md").read_text(encoding="utf-8")
    for page in sorted(pages):
        assert f"[{page}]({page}.md)" in index, page


def test_every_decision_is_in_the_index():
    index = (DOCS / "adr" / "README.md").read_text(encoding="utf-8")
    pages = sorted((DOCS / "adr").glob("0*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    for page, number in zip(pages, numbers, strict=True):
        assert f"[{number}]({page.name})" in index
        assert page.read_text(encoding="utf-8").startswith(f"# {number}. ")


def test_every_page_of_the_docs_is_reached_from_their_index():
    seen: set[Path] = set()
    pending = [DOCS / "README.md"]
    while pending:
        page = pending.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        for target in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:", target):
                pending.append((page.parent / target.partition("#")[0]).resolve())
    results = DOCS / "results"
    lost = [p.relative_to(ROOT) for p in DOCS.rglob("*.md") if p not in seen and results not in p.parents]
    assert lost == []


def test_the_licence_is_the_whole_of_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
