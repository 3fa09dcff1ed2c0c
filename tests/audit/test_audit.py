"""`make audit` against a local stand-in for the OSV database: what is known makes it fail, and so does not knowing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from audiorec import audit

ROOT = Path(__file__).parents[2]
ANSWERS: dict[str, Any] = json.loads((Path(__file__).parent / "osv_answers.json").read_text())
"""By NAME==VERSION, in the form of OSV's interface, cut down to what pip-audit reads."""


class Database(ThreadingHTTPServer):
    """OSV's query interface on loopback; knows the advisories that it is given and counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.known: dict[str, Any] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/query"


class Answering(BaseHTTPRequestHandler):
    server: Database

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = f"{query['package']['name']}=={query['version']}"
        self.server.asked.append(asked)
        body = json.dumps(self.server.known.get(asked, {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def database() -> Iterator[Database]:
    with Database() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A few lines of the real lock, so that the command takes seconds."""
    chosen = ("mlflow==", "requests==", "torch==")
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(chosen)]
    assert len(lines) == len(chosen)
    path = tmp_path / "lock.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(lock: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "audiorec.audit",
            "--no-sbom",
            "--lock",
            str(lock),
            "--out",
            str(lock.parent / "out"),
            *options,
        ],
        env={
            **os.environ,
            "PIP_AUDIT_VULNERABILITY_SERVICE": "osv",
            "PIP_AUDIT_OSV_URL": url,
            "NO_PROXY": "127.0.0.1",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def version_in(lock: Path, name: str) -> str:
    return audit.names(lock)[name]


def test_nothing_known_passes(database: Database, lock: Path):
    database.known[audit.CANARY] = ANSWERS[audit.CANARY]
    ended = run(lock, database.url)
    assert ended.returncode == 0, ended.stderr
    assert database.asked[0] == audit.CANARY
    assert sorted(database.asked[1:]) == sorted(lock.read_text().split())


def test_the_list_of_what_is_installed_holds_the_lock_and_licences(tmp_path: Path):
    sbom = json.loads(audit.write_sbom(tmp_path).read_text())
    assert sbom["bomFormat"] == "CycloneDX" and sbom["specVersion"] == "1.6" and sbom["dependencies"]
    listed = {canonicalize_name(part["name"]): part for part in sbom["components"]}
    assert set(audit.names(ROOT / "constraints.txt")) <= set(listed)
    licensed = [part for part in listed.values() if part.get("licenses")]
    assert len(licensed) > 0.9 * len(listed)


def test_a_known_advisory_fails_and_is_named(database: Database, lock: Path):
    database.known[audit.CANARY] = ANSWERS[audit.CANARY]
    database.known[f"mlflow=={version_in(lock, 'mlflow')}"] = ANSWERS["mlflow==3.17.1"]
    ended = run(lock, database.url)
    assert ended.returncode == 1
    assert "CVE-2026-53995" in ended.stderr and "mended in 3.17.2" in ended.stderr
    answered = run(lock, database.url, "--ignore", "CVE-2026-53995")
    assert answered.returncode == 0, answered.stderr


def test_a_source_without_advisories_is_not_believed(database: Database, lock: Path):
    ended = run(lock, database.url)
    assert ended.returncode == 69
    assert "advisories cannot be reached" in ended.stderr and audit.CANARY in ended.stderr
    assert database.asked == [audit.CANARY], "nothing else is asked of it"


def test_no_answer_at_all_is_said(database: Database, lock: Path):
    url = database.url
    database.shutdown()
    database.server_close()
    ended = run(lock, url)
    assert ended.returncode == 69
    assert "advisories cannot be reached" in ended.stderr and "Traceback" not in ended.stderr


def test_a_lock_that_is_not_installed_is_refused(database: Database, lock: Path):
    lock.write_text("mlflow==1.0\n")
    ended = run(lock, database.url)
    assert ended.returncode == 78
    assert "mlflow==1.0" in ended.stderr and "make setup" in ended.stderr
    assert database.asked == []


def test_a_skipped_or_forgotten_package_is_not_judged(tmp_path: Path):
    lock = tmp_path / "lock.txt"
    lock.write_text("# a comment\njinja2==2.4.1\nruamel.yaml==0.19.1\nPyYAML==6.0.4\n")
    # What pip-audit 2.10.1 says, with success, where the index has files and no advisories.
    skipped = "Dependency not found on PyPI and could not be audited: jinja2 (2.4.1)"
    answer = {
        "dependencies": [
            {"name": "jinja2", "skip_reason": skipped},
            {"name": "ruamel-yaml", "version": "0.19.1", "vulns": []},
        ]
    }
    assert audit.not_judged(answer, lock) == [f"jinja2: {skipped}", "pyyaml: not in the answer"]


def test_skipped_packages_fail_the_audit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lock: Path):
    def answered(asked: Path, report: Path, ignored: object = ()) -> dict[str, Any]:
        known = {"id": "CVE-2014-1402", "fix_versions": ["2.7.2"]}
        return {
            "dependencies": [
                {"name": name, "version": version, "vulns": [known]}
                if name == "jinja2"
                else {"name": name, "skip_reason": "Dependency not found"}
                for name, version in audit.names(asked).items()
            ]
        }

    monkeypatch.setattr(audit, "ask", answered)
    with pytest.raises(
        audit.Unavailable, match=r"not audited, 3 of 3 packages:\n- mlflow: Dependency not found"
    ):
        audit.audit(lock, tmp_path / "out")
