"""`make image`: build docker/Dockerfile without a container engine, then run every entry point of compose.yaml in it.

Debian's buildah builds in a chroot (no engine, no daemon), on a base that debootstrap makes unless IMAGE_BASE names one.
pip inside the build finds packages the way pip does on this machine: its settings and the local files that they name are
mounted for the build and do not become part of the image. Postgres, Redis and an S3 server are those of `make cluster`.
Needs root, buildah and debootstrap; leaves its base, logs and report in .audiorec/image.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".audiorec" / "image"
IMAGE = "localhost/audiorec"
BASE = "localhost/audiorec-base"
SUITE = "bookworm"
"""The Debian release whose Python is 3.11."""

ENVIRONMENT = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
PATIENCE = 600.0
"""Seconds that a part may take to answer its health check: the machine may be busy."""

HELPERS = {"bucket", "migrated"}
"""Parts of compose.yaml that do something once and end."""

LAST = ("mlflow", "api-server")
"""Parts that others ask: they stay up until all have answered."""


class Failed(Exception):
    """What could not be built or did not answer, and what was seen."""


def run(command: Sequence[str], **options: Any) -> str:
    """Standard output of a command.

    Raises:
        Failed: it ended with another code than 0; with the end of what it said.
    """
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ENVIRONMENT},
        **options,
    )
    if ended.returncode:
        said = "\n".join((ended.stdout + ended.stderr).strip().splitlines()[-25:])
        raise Failed(f"{' '.join(command[:3])} ... ended with {ended.returncode}:\n{said}")
    return ended.stdout


def must_have(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise Failed(
            f"{', '.join(missing)} not found; on Debian: apt-get install --no-install-recommends {' '.join(programs)}"
        )
    if os.geteuid():
        raise Failed("building in a chroot needs root (with an engine: docker build -f docker/Dockerfile .)")


# --- the build


def make_base() -> str:
    """The name of a base image with Python 3.11: IMAGE_BASE, or one that debootstrap makes the first time."""
    if given := os.environ.get("IMAGE_BASE"):
        return given
    if BASE in run(["buildah", "images", "--format", "{{.Name}}"]).split():
        return BASE
    must_have("debootstrap")
    HOME.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME) as temporary:
        folder = Path(temporary)
        system = folder / "base"
        include = "--include=python3,python3-venv,ca-certificates"
        run(["debootstrap", "--variant=minbase", include, SUITE, str(system)])
        for leftover in [*system.glob("var/cache/apt/*"), *system.glob("var/lib/apt/lists/*")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        run(["tar", "-C", str(system), "-cf", str(folder / "base.tar"), "."])
        (folder / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
        run(["buildah", "bud", "--quiet", "--tag", BASE, "--file", str(folder / "Dockerfile"), str(folder)])
    return BASE


def pip_settings(listed: str) -> dict[str, str]:
    """What `pip config list` says, by option; variables of the environment go before files, as pip has it."""
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for name, value in re.findall(rf"^{re.escape(section)}\.([\w-]+)=(.+)$", listed, re.MULTILINE):
            settings[name] = str(ast.literal_eval(value))
    return settings


def local_files(settings: Mapping[str, str]) -> list[Path]:
    """Files and folders of this machine that pip's settings name."""
    found = []
    for value in settings.values():
        for word in value.split():
            parsed = urlparse(word)
            path = Path(unquote(parsed.path) if parsed.scheme == "file" else word)
            if path.is_absolute() and path.exists():
                found.append(path)
    # An index may lead to files beside it by links of its own.
    return sorted({path.parent if path.name == "simple" else path for path in found})


def build(base: str) -> None:
    """The image, tagged IMAGE."""
    settings = pip_settings(run([sys.executable, "-m", "pip", "config", "list"]))
    with tempfile.TemporaryDirectory() as temporary:
        configuration = Path(temporary) / "pip.conf"
        lines = [f"{name} = " + "\n    ".join(value.split()) for name, value in settings.items()]
        configuration.write_text("[global]\n" + "\n".join(lines) + "\n", encoding="utf-8")
        mounts = [f"{configuration}:/etc/pip.conf:ro"]
        mounts += [f"{path}:{path}:ro" for path in local_files(settings)]
        command = ["buildah", "bud", "--network", "host", "--build-arg", f"BASE={base}", "--tag", IMAGE]
        command += [part for mount in mounts for part in ("--volume", mount)]
        command += ["--file", str(ROOT / "docker" / "Dockerfile"), str(ROOT)]
        HOME.mkdir(parents=True, exist_ok=True)
        with (HOME / "build.log").open("w") as log:
            ended = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, check=False, env={**os.environ, **ENVIRONMENT}
            )
    if ended.returncode:
        tail = "\n".join((HOME / "build.log").read_text(errors="replace").splitlines()[-25:])
        raise Failed(f"the image was not built (all of it: {HOME / 'build.log'}):\n{tail}")


# --- what is in it


def size_mb(image: str) -> float:
    """Size of the image's layers, unpacked, in 1e6 bytes."""
    (found,) = json.loads(run(["buildah", "images", "--json", image]))
    number, unit = found["size"].split()
    return float(number) * {"B": 1e-6, "KB": 1e-3, "MB": 1.0, "GB": 1e3}[unit.upper()]


@contextlib.contextmanager
def container(image: str) -> Iterator[tuple[str, Path]]:
    """A working container and where its files lie."""
    name = run(["buildah", "from", image]).strip()
    try:
        yield name, Path(run(["buildah", "mount", name]).strip())
    finally:
        run(["buildah", "rm", name])


BUILD_TOOLS = ("gcc", "cc", "g++", "ld", "make", "cargo", "rustc", "git")
NO_SECRETS = re.compile(
    r"(^|/)(\.env|.*\.key|passwords\.json|secrets\.json|id_rsa|\.netrc|pip\.conf|\.pypirc)$"
)


def contents_problems(root: Path, owner: int = 0) -> list[str]:
    """Build tools, secrets, code that is not its `owner`'s and what the build mounted: none should be in the image."""
    problems = []
    for folder in ("usr/bin", "usr/local/bin", "opt/audiorec/bin"):
        problems += [f"build tool {folder}/{t}" for t in BUILD_TOOLS if (root / folder / t).exists()]
    for top in ("opt", "etc", "root", "home", "var/lib/audiorec"):
        for path in (root / top).rglob("*"):
            inside = path.relative_to(root).as_posix()
            if path.is_symlink():
                continue
            if path.is_file() and path.stat().st_size and NO_SECRETS.search(inside):
                problems.append(f"looks like a secret or a setting of this machine: {inside}")
            if top == "opt" and path.stat().st_uid != owner:
                problems.append(f"not the owner's own, so a part could change its code: {inside}")
    allowed = {"audiorec", "app"}
    problems += [
        f"left by the build: opt/{p.name}" for p in (root / "opt").iterdir() if p.name not in allowed
    ]
    return problems


# --- running the entry points


def compose_on_loopback(text: str, ports: Mapping[str, int], values: Mapping[str, str]) -> dict[str, Any]:
    """The parts of compose.yaml that are our image, with names and ports of this machine instead of the cluster's.

    Raises:
        Failed: an address that is replaced is not in the file any more.
    """
    addresses = {
        "@postgres/": f"@127.0.0.1:{ports['postgres']}/",
        "@redis:6379": f"@127.0.0.1:{ports['redis']}",
        "http://s3:9000": f"http://127.0.0.1:{ports['s3']}",
        "http://mlflow:5000": f"http://127.0.0.1:{ports['mlflow']}",
        "mlflow:5000,127.0.0.1:5000": f"127.0.0.1:{ports['mlflow']}",
        "--port=5000": f"--port={ports['mlflow']}",
        "127.0.0.1:5000/": f"127.0.0.1:{ports['mlflow']}/",
        "http://serve:8000": f"http://127.0.0.1:{ports['serve']}",
        "http://api-server:8080": f"http://127.0.0.1:{ports['api-server']}",
        "AUDIOREC_SERVICES__HOST: api-server": "AUDIOREC_SERVICES__HOST: 127.0.0.1",
        "127.0.0.1:8080": f"127.0.0.1:{ports['api-server']}",
        "127.0.0.1:8000/": f"127.0.0.1:{ports['serve']}/",
        '"9464"': f'"{ports["metrics"]}"',
        "127.0.0.1:9464": f"127.0.0.1:{ports['metrics']}",
        "0.0.0.0": "127.0.0.1",
    }
    for found, here in addresses.items():
        if found not in text:
            raise Failed(f"{found!r} is not in docker/compose.yaml any more; docker/image.py has to follow")
        text = text.replace(found, here)
    text = re.sub(r"\$\{(\w+):\?\}", lambda match: values[match[1]], text)
    text = re.sub(r"\$\{\w+:-(\w*)\}", r"\1", text)
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    ours = {name: part for name, part in services.items() if part["image"] == "audiorec"}
    for part in ours.values():
        part["environment"] |= {
            "AIRFLOW__API__PORT": str(ports["api-server"]),
            "AUDIOREC_SERVICES__AIRFLOW_PORT": str(ports["api-server"]),
            "AUDIOREC_SERVICES__SERVING_PORT": str(ports["serve"]),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(ports["worker log"]),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(ports["triggerer log"]),
        }
    return ours


def words(test: Sequence[str]) -> list[str]:
    """A health check of compose as a command."""
    kind, *rest = (part.replace("$$", "$") for part in test)
    return rest if kind == "CMD" else ["/bin/sh", "-c", *rest]


class Runner:
    """Runs commands in one working container, each as the user that compose.yaml says."""

    def __init__(self, name: str, mounts: Sequence[str]) -> None:
        self.name = name
        self.mounts = mounts

    def command(self, part: Mapping[str, Any], command: Sequence[str]) -> list[str]:
        asked = ["buildah", "run", "--network", "host", "--user", part["user"]]
        asked += [word for mount in self.mounts for word in ("--volume", mount)]
        asked += [w for name, value in part["environment"].items() for w in ("--env", f"{name}={value}")]
        return [*asked, self.name, "--", *command]

    def once(self, part: Mapping[str, Any], command: Sequence[str]) -> str:
        return run(self.command(part, command), timeout=PATIENCE)

    def started(self, name: str, part: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        with (HOME / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                self.command(part, part["command"]),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **ENVIRONMENT},
            )

    def wait(self, name: str, part: Mapping[str, Any], process: subprocess.Popen[bytes]) -> None:
        """Until the part's health check answers.

        Raises:
            Failed: the part ended or did not answer in time, with the end of its log.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            tail = "\n".join((HOME / f"{name}.log").read_text(errors="replace").splitlines()[-15:])
            if process.poll() is not None:
                raise Failed(f"{name} ended with {process.returncode}:\n{tail}")
            try:
                self.once(part, words(part["healthcheck"]["test"]))
                return
            except Failed as failed:
                if time.monotonic() > deadline:
                    raise Failed(f"{name} is not healthy after {PATIENCE:.0f} s: {failed}\n{tail}") from None
            time.sleep(2)


def processes_below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started: first asked, then killed."""
    below = processes_below(process)
    for one in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(below, timeout=20)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.terminate()
    process.wait(20)


def users_of(process: subprocess.Popen[bytes]) -> set[int]:
    """Effective user ids of the processes of a part, less buildah's own."""
    found = set()
    for one in processes_below(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "buildah-chroot" not in one.exe():
                found.add(one.uids().effective)
    return found


def values_for(password: str) -> dict[str, str]:
    """What docker/.env would hold, drawn for this run; names as in docker/env.example."""
    names = re.findall(r"^([A-Z_0-9]+)=$", (ROOT / "docker" / "env.example").read_text(), re.MULTILINE)
    values = {name: secrets.token_hex(32) for name in names}
    values |= dict.fromkeys(("POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_SECRET_KEY"), password)
    values["S3_ACCESS_KEY"] = "airflow"
    values["AIRFLOW_FERNET_KEY"] = urlsafe_b64encode(secrets.token_bytes(32)).decode()
    values["SERVING_KEYS"] = f"check:{secrets.token_hex(24)}"
    return values


def check() -> list[dict[str, Any]]:
    """Run every part of compose.yaml in the image; a row each with the seconds until its health check answered.

    Raises:
        Failed: a part ended, did not answer, ran as root, or the image holds what it should not.
    """
    from audiorec.settings import load_settings
    from audiorec.stack.servers import Servers, free_ports

    drawn = free_ports(6)
    names = ("mlflow", "api-server", "serve", "metrics", "worker log", "triggerer log")
    ports = dict(zip(names, drawn, strict=True))
    servers = Servers.of(load_settings(services={"home": str(HOME / "servers")}))
    ports |= {"postgres": servers.postgres_port, "redis": servers.redis_port, "s3": servers.s3_port}
    values = values_for(servers.password)
    parts = compose_on_loopback((ROOT / "docker" / "compose.yaml").read_text(), ports, values)
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        name, root = stack.enter_context(container(IMAGE))
        if problems := contents_problems(root):
            raise Failed("the image holds what it should not:\n- " + "\n- ".join(problems[:20]))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        key = folder / "user-ids.key"
        key.write_text(secrets.token_hex(32), encoding="utf-8")
        os.chown(key, 10001, 10001)
        key.chmod(0o400)
        source = folder / "source"
        source.mkdir()
        runner = Runner(name, [f"{key}:/run/secrets/user-ids.key:ro", f"{source}:/source:ro"])
        servers.start(say=say)
        stack.callback(servers.stop)

        def row(part: str, began: float, users: set[int]) -> None:
            seconds = round(time.monotonic() - began, 1)
            rows.append({"part": part, "seconds": seconds, "users": sorted(users)})
            say(f"  {part:14} healthy after {seconds:6.1f} s, as user {', '.join(map(str, sorted(users)))}")
            if users - {10001}:
                raise Failed(f"{part} runs as {sorted(users)}, expected 10001 alone")

        for part in ("bucket", "migrated"):
            began = time.monotonic()
            runner.once(parts[part], parts[part]["command"])
            row(part, began, {int(runner.once(parts[part], ["id", "-u"]))})
        order = [*LAST, *(part for part in parts if part not in {*HELPERS, *LAST, "watch"})]
        for part in order:
            began = time.monotonic()
            process = runner.started(part, parts[part])
            stack.callback(end, process)
            runner.wait(part, parts[part], process)
            row(part, began, users_of(process))
            if part == "dag-processor":
                listed = runner.once(parts[part], ["airflow", "dags", "list", "--output", "json"])
                if "audiobook_recommender" not in listed:
                    raise Failed(f"the DAG is not listed: {listed[-500:]}")
            if part not in LAST:
                end(process)
        # The watchdog has no address to ask: one look at the Airflow that is up has to go well.
        began = time.monotonic()
        look = [*runner.command(parts["watch"], [*parts["watch"]["command"], "--once"])]
        ended = subprocess.run(
            look,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            env={**os.environ, **ENVIRONMENT},
        )
        if ended.returncode or "not looked at" in ended.stderr or "look failed" in ended.stderr:
            raise Failed(f"watch ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
        row("watch", began, {int(runner.once(parts["watch"], ["id", "-u"]))})
    return rows


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Exit code 0: built, and every part answered."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check-only", action="store_true", help="run the parts of the image that is there")
    given = parser.parse_args()
    report: dict[str, Any] = {}
    try:
        must_have("buildah")
        if not given.check_only:
            began = time.monotonic()
            base = make_base()
            report["base"] = {"mb": size_mb(base), "seconds": round(time.monotonic() - began, 1)}
            say(f"base {base}: {report['base']['mb']:.0f} MB, {report['base']['seconds']:.0f} s")
            began = time.monotonic()
            build(base)
            report["build_seconds"] = round(time.monotonic() - began, 1)
        report["image_mb"] = size_mb(IMAGE)
        say(f"image {IMAGE}: {report['image_mb']:.0f} MB, built in {report.get('build_seconds', 0):.0f} s")
        report["parts"] = check()
    except (Failed, subprocess.TimeoutExpired) as failed:
        say(f"make image: {failed}")
        return 1
    (HOME / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"every part answered; figures in {HOME / 'report.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
