"""A run's figures as a page under `docs/results/`, with all that is needed to get them again."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pandas as pd
import psutil

from audiorec.chain import CHAIN
from audiorec.runner import Resolver
from audiorec.settings import Settings


def publish(settings: Settings, as_of: date, out: Path, settings_file: Path | None) -> Path:
    """Write `run.md`, `run.csv`, `run.costs.csv` and `run.png` of the date's `evaluate` result into `out`; returns the page.

    Raises:
        BadSettings: there is no result of this date, with these settings and this code.
    """
    resolver = Resolver(settings, as_of)
    evaluated = resolver.need("evaluate")
    store = resolver.store
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(store.open(evaluated, "metrics.csv"), out / "run.csv")
    shutil.copyfile(store.open(evaluated, "metrics.png"), out / "run.png")
    named = f" SETTINGS={settings_file}" if settings_file else ""
    lines = [
        f"# A run of {as_of}",
        "",
        store.open(evaluated, "report.md").read_text(encoding="utf-8"),
        "![HR@10 with 95% intervals](run.png)",
        "",
        "All figures in long form: [run.csv](run.csv). Intervals are bootstrapped over users, one seed a model.",
        "",
        "| | |",
        "|---|---|",
        f"| command | `make run SOURCE=... AS_OF={as_of}{named}` |",
        f"| code | commit `{commit()}` |",
        f"| profile, seeds | {settings.profile}; hgnn {settings.hgnn.seed}, two_tower {settings.two_tower.seed}, "
        f"evaluation {settings.evaluation.seed} |",
        f"| machine | {processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()} |",
        "",
        "| task | seconds | peak MiB | counts |",
        "|---|---:|---:|---|",
    ]
    costs = []
    for name in CHAIN:
        manifest = resolver.manifest(name)
        if manifest is None:
            continue
        run = store.run_record(manifest)
        costs.append({"task": name, "seconds": run.get("seconds"), "peak_mb": run.get("peak_mb")})
        counts = ", ".join(
            f"{key} {value:,}" for key, value in list(manifest.facts.get("counts", {}).items())[:5]
        )
        lines.append(f"| {name} | {run.get('seconds', '')} | {run.get('peak_mb', '')} | {counts} |")
    pd.DataFrame(costs).to_csv(out / "run.costs.csv", index=False)
    page = out / "run.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def commit(folder: Path = Path(__file__).parent) -> str:
    """The commit that this code is, marked `-dirty` where it was changed; `unknown` outside a repository.

    `docs/` does not count: a page that is written there must not make the page beside it look changed.
    """
    git = ["git", "-C", str(folder)]
    try:
        found = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":(top)", ":(top,exclude)docs"])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("-dirty" if changed.returncode else "")


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"
