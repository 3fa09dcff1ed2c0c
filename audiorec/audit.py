"""`make audit`: known advisories against the locked versions (pip-audit), and a list of what is installed (CycloneDX).

pip-audit leaves out, with success, what its source of advisories does not know, and takes an answer without advisories
for "none". An audit that has seen nothing must not look like a clean one, so here a package left out is a failure, and
a version with advisories that everybody knows is asked about first.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from packaging.utils import canonicalize_name

from audiorec.errors import AudiorecError, BadSettings, Unavailable

CANARY = "jinja2==2.4.1"
"""Advisories against it have been in every database since 2014 (CVE-2014-1402)."""

SBOM = "sbom.cdx.json"
REPORT = "advisories.json"


def must_have(module: str) -> None:
    if find_spec(module) is None:
        raise BadSettings(
            f"{module} is not installed in {sys.prefix}; it belongs to the extra 'audit'. Run `make setup`"
        )


def ask(lock: Path, report: Path, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """pip-audit's answer for the versions of `lock` less the `ignored` advisories, also left in `report`.

    pip-audit takes its own settings from the environment, e.g. PIP_AUDIT_VULNERABILITY_SERVICE and PIP_AUDIT_OSV_URL.

    Raises:
        Unavailable: pip-audit gave no answer, e.g. because the advisories could not be reached.
    """
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--output", str(report)]
    command += [f"--ignore-vuln={known}" for known in ignored]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(report.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        said = ended.stderr.strip().splitlines() or ["nothing"]
        raise Unavailable(
            f"advisories cannot be reached: pip-audit ended with {ended.returncode} and no answer. "
            f"It said: {said[-1]}"
        ) from None
    if not isinstance(answer, dict) or not isinstance(answer.get("dependencies"), list):
        raise Unavailable(f"pip-audit's answer in {report} is not what its JSON format promises")
    return answer


def names(lock: Path) -> dict[str, str]:
    """Version by canonical name in a lock of NAME==VERSION lines."""
    pinned = re.findall(r"^([\w.-]+)==([\w.+!]+)$", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): locked for name, locked in pinned}


def not_judged(answer: dict[str, Any], lock: Path) -> list[str]:
    """Locked packages on which the answer has no judgement, each with the reason."""
    reasons: dict[str, str | None] = {
        canonicalize_name(found["name"]): found.get("skip_reason") for found in answer["dependencies"]
    }
    left = {name: reasons.get(name, "not in the answer") for name in names(lock)}
    return [f"{name}: {reason}" for name, reason in left.items() if reason is not None]


def advisories(answer: dict[str, Any]) -> list[str]:
    """One line for each known advisory against a locked version."""
    return [
        f"{found['name']} {found['version']}: {known['id']}"
        + (f" ({', '.join(known['aliases'])})" if known.get("aliases") else "")
        + (f", mended in {', '.join(known['fix_versions'])}" if known["fix_versions"] else ", not mended yet")
        for found in answer["dependencies"]
        for known in found.get("vulns", [])
    ]


def check_that_advisories_are_there(folder: Path) -> None:
    """Ask about a version with well-known advisories.

    Raises:
        Unavailable: none came back, so "nothing known" would mean nothing.
    """
    with tempfile.TemporaryDirectory() as temporary:
        lock = Path(temporary) / "canary.txt"
        lock.write_text(f"{CANARY}\n", encoding="utf-8")
        answer = ask(lock, folder / "canary.json")
        if advisories(answer):
            return
        why = "; ".join(not_judged(answer, lock)) or "the answer has no advisory"
    raise Unavailable(
        f"advisories cannot be reached: {CANARY} has known ones and none came back ({why}). Nothing was audited. "
        "Run this where PyPI's own JSON interface answers (an index that only mirrors files has no advisories), "
        "or name another source: PIP_AUDIT_VULNERABILITY_SERVICE=osv"
    )


def write_sbom(folder: Path) -> Path:
    """What is installed beside this Python, with licences and who needs what, as CycloneDX JSON.

    Raises:
        AudiorecError: cyclonedx-py is not there, or failed.
    """
    must_have("cyclonedx_py")
    sbom = folder / SBOM
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON"]
    # Validating its own writing against the schema takes ten times as long as writing it.
    command += ["--no-validate"]
    command += ["--output-file", str(sbom), sys.executable]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise AudiorecError(f"cyclonedx-py ended with {ended.returncode}: {ended.stderr.strip()[-2000:]}")
    return sbom


def not_installed(lock: Path) -> list[str]:
    """Locked versions that are not the ones beside this Python."""
    problems = []
    for name, locked in names(lock).items():
        try:
            # Builds of one version differ behind the plus: 2.13.0+cpu.
            found = version(name).split("+")[0]
        except PackageNotFoundError:
            found = "absent"
        if found != locked:
            problems.append(f"{name}=={locked} (here: {found})")
    return problems


def audit(lock: Path, folder: Path, ignored: Sequence[str] = ()) -> list[str]:
    """Known advisories against the versions of `lock`; what pip-audit answered is left in `folder`.

    Raises:
        BadSettings: the tools or the lock are not there, or another set of versions is installed.
        Unavailable: the advisories could not be reached, or not for every package.
    """
    must_have("pip_audit")
    if not lock.is_file() or not names(lock):
        raise BadSettings(f"{lock} is not a lock of NAME==VERSION lines; say where it is with --lock")
    if missing := not_installed(lock):
        raise BadSettings(f"locked and not installed in {sys.prefix}: {', '.join(missing)}. Run `make setup`")
    check_that_advisories_are_there(folder)
    answer = ask(lock, folder / REPORT, ignored)
    if left := not_judged(answer, lock):
        raise Unavailable(f"not audited, {len(left)} of {len(names(lock))} packages:\n- " + "\n- ".join(left))
    return advisories(answer)


def main(
    lock: Annotated[Path, typer.Option(help="the lock, NAME==VERSION lines")] = Path("constraints.txt"),
    out: Annotated[Path, typer.Option(help="folder for the report and the SBOM")] = Path(".audiorec/audit"),
    sbom: Annotated[bool, typer.Option(help="also write the list of what is installed")] = True,
    ignore: Annotated[list[str] | None, typer.Option(help="an advisory answered in docs/security.md")] = None,
) -> None:
    """Exit code 0: every locked version was judged and none has a known advisory. 1: some have. Others: not judged."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        if sbom:
            typer.echo(f"what is installed: {write_sbom(out)}")
        found = audit(lock, out, ignore or ())
    except AudiorecError as error:
        typer.echo(f"audit failed: {error}", err=True)
        raise typer.Exit(int(error.exit_code)) from None
    if found:
        typer.echo(f"{len(found)} known advisories against {lock}:\n- " + "\n- ".join(found), err=True)
        typer.echo(
            "Raise the version in the lock, or answer it in docs/security.md and pass --ignore ID", err=True
        )
        raise typer.Exit(1)
    typer.echo(f"{len(names(lock))} packages, no known advisory")


if __name__ == "__main__":
    typer.run(main)
