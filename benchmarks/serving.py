"""The service under load: real HTTP, a made-up catalogue, the load generator on the same cores.

    python -m benchmarks.serving                      # 250,000 titles; writes docs/results/serving.md and .csv
    python -m benchmarks.serving --titles 2000000     # past index.exact_limit: HNSW, its recall stated; builds for an hour
    python -m benchmarks.serving --swaps 60           # hot swaps, a sixth of them back to the version before
    python -m benchmarks.serving --soak-minutes 30    # memory and latency over time

Requests leave by the clock, whether earlier ones came back or not, and a request's time counts from when it was due:
a service that stalls cannot hide it by slowing its clients down.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from audiorec.champion import Bundle, write_pointer
from audiorec.experiments.publish import commit, processor
from audiorec.settings import Settings, load_settings
from audiorec.store import Store
from benchmarks import synthetic_release

KEY = "a-key-of-the-benchmark-0123456789"
USERS = 4_000
K = 100
ROOT = Path(__file__).parents[1]


# --- load --------------------------------------------------------------------------------------------------


class Connections:
    """Keep-alive HTTP/1.1 over plain sockets: a client that costs little beside what it measures."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of one request for recommendations; status 0 if the connection broke."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the service closes connections that idle
                break
            writer.close()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(
            b"POST /v1/recommendations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"X-API-Key: %s\r\nContent-Length: %d\r\n\r\n" % (KEY.encode(), len(body)) + body
        )
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = int(next(one for one in lines if one.startswith(b"content-length")).split(b":")[1])
            content = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, b""
        self._idle.append((reader, writer))
        return int(head[9:12]), content


def body_of(user: int, **fields: Any) -> bytes:
    return json.dumps({"user_id": f"u{user:06d}", "k": K, "surface": "home", **fields}).encode()


@dataclass(frozen=True)
class Load:
    """Milliseconds of each request in the order in which they were due, and statuses."""

    milliseconds: np.ndarray
    statuses: Counter[int]
    seconds: float

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.statuses[200] / self.seconds

    @property
    def failed(self) -> int:
        return sum(number for status, number in self.statuses.items() if status != 200)

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.milliseconds, share))


async def open_loop(port: int, rate: float, seconds: float, seed: int = 0, reasons: bool = True) -> Load:
    """Requests at random moments, `rate` a second on average."""
    random = np.random.default_rng(seed)
    due = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
    users = random.integers(0, USERS, len(due))
    connections, took, statuses = Connections(port), np.zeros(len(due)), Counter[int]()
    began = time.perf_counter()

    async def one(number: int) -> None:
        status, _ = await connections.post(body_of(int(users[number]), reasons=reasons))
        took[number] = (time.perf_counter() - began - due[number]) * 1e3
        statuses[status] += 1

    tasks = []
    for number, moment in enumerate(due):
        wait = moment - (time.perf_counter() - began)
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return Load(took, statuses, time.perf_counter() - began)


async def closed_loop(port: int, clients: int, seconds: float, reasons: bool = True, seed: int = 1) -> Load:
    """Clients that ask again as soon as they are answered: how much the service can do."""
    connections, took, statuses = Connections(port), list[float](), Counter[int]()
    until = time.perf_counter() + seconds
    began = time.perf_counter()

    async def client(number: int) -> None:
        random = np.random.default_rng([seed, number])
        while time.perf_counter() < until:
            sent = time.perf_counter()
            status, _ = await connections.post(body_of(int(random.integers(USERS)), reasons=reasons))
            took.append((time.perf_counter() - sent) * 1e3)
            statuses[status] += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return Load(np.array(took), statuses, time.perf_counter() - began)


async def answers(port: int, users: Sequence[int], at_once: int = 16) -> list[dict[str, Any]]:
    """Whole answers, `at_once` in flight."""
    connections, found = Connections(port), dict[int, dict[str, Any]]()
    waiting = list(enumerate(users))

    async def client() -> None:
        while waiting:
            number, user = waiting.pop()
            status, content = await connections.post(body_of(user, reasons=False))
            assert status == 200, content
            found[number] = json.loads(content)

    await asyncio.gather(*(client() for _ in range(at_once)))
    return [found[number] for number in range(len(users))]


# --- the service -------------------------------------------------------------------------------------------


class Server:
    """`python -m serving`, or this file's baseline, as a process of its own."""

    def __init__(self, work: Path, port: int, baseline: bool = False, **serving: Any) -> None:
        self.port = port
        groups = {
            "STORE": {"uri": str(work / "store"), "scratch": str(work / "scratch")},
            "SERVICES": {"home": str(work / "home"), "serving_port": port},
            "PRIVACY": {"user_ids": "as_given"},  # the made-up users have no other names
            "SERVING": {
                "follow": "pointer",
                "poll_seconds": 0.2,
                "requests_per_second": 1e6,
                "burst": 1_000_000,
                **serving,
            },
        }
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AUDIOREC_")}
        environment |= {f"AUDIOREC_{name}": json.dumps(values) for name, values in groups.items()}
        environment |= {"AUDIOREC_API_KEYS": f"benchmark:{KEY}", "PYTHONPATH": str(ROOT)}
        module = ["-m", "benchmarks.serving", "--baseline"] if baseline else ["-m", "serving"]
        self.log = work / f"server-{port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *module], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
            )
        self._wait()

    def _wait(self) -> None:
        import httpx

        until = time.monotonic() + 600
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                found = httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5)
                if found.status_code == 200:
                    return
                assert not found.json().get("refused"), found.text
            except httpx.HTTPError:
                pass
            time.sleep(0.3)
        raise TimeoutError(self.log.read_text()[-3000:])

    def memory_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def serve_baseline(settings: Settings) -> None:
    """The same service, searching by one `IndexFlatIP` query at a time."""
    import threading

    import faiss

    from audiorec.search import Found, Query
    from serving.__main__ import server
    from serving.app import Service
    from serving.following import Follower

    class OneAtATime:
        exact = True

        def __init__(self, vectors: np.ndarray) -> None:
            self._index = faiss.IndexFlatIP(vectors.shape[1])
            self._index.add(np.ascontiguousarray(vectors))
            self._lock = threading.Lock()

        def search(self, queries: Sequence[Query]) -> list[Found]:
            found = []
            for query in queries:
                with self._lock:
                    scores, rows = self._index.search(query.vector[None], query.k + len(query.barred))
                keep = ~np.isin(rows[0], query.barred)
                found.append(Found(rows[0][keep][: query.k], scores[0][keep][: query.k].astype(np.float64)))
            return found

    class Baseline(Follower):
        def look(self) -> None:
            before = self.current
            super().look()
            if self.current is not before and self.current is not None:
                recommender = self.current.recommender
                recommender.search = OneAtATime(np.array(recommender.item_vectors))

    server(
        Service(settings, Baseline(settings)), settings.services.host, settings.services.serving_port
    ).run()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- what is measured --------------------------------------------------------------------------------------


def exact_share(store: Store, release: dict[str, Any], port: int, queries: int) -> tuple[float, float]:
    """(share of answers that are the exact first 100, recall@100) by float32 inner products over the catalogue.

    An answer counts as exact if the scores of its titles are the best hundred, title by title: of equal scores either
    title may stand.
    """
    from audiorec.recommend import Asked, Recommender

    recommender = Recommender(store, Bundle.load(store, release), "0")
    users = np.random.default_rng(2).choice(USERS, queries, replace=False)
    found = asyncio.run(answers(port, users.tolist()))
    vectors = np.array(recommender.item_vectors)
    exact = hits = 0
    for start in range(0, queries, 50):
        prepared = [
            recommender.prepare(Asked(user_id=f"u{user:06d}", k=K)) for user in users[start : start + 50]
        ]
        scores = np.stack([one.query.vector for one in prepared]) @ vectors.T
        for number, one in enumerate(prepared):
            own = scores[number]
            own[one.query.barred] = -np.inf
            best = np.sort(own[np.argpartition(-own, K)[:K]])[::-1]
            rows = [
                recommender.idx("audiobook", title["id"])
                for title in found[start + number]["recommendations"]
            ]
            # float32 sums differ in their last digits by the order of the terms.
            near = 1e-5 * max(1.0, float(np.abs(best).max()))
            exact += len(set(rows)) == K and bool(np.allclose(own[rows], best, rtol=0, atol=near))
            hits += int((own[rows] >= best[-1] - near).sum())
    return exact / queries, hits / (queries * K)


def main_benchmark(options: argparse.Namespace, work: Path) -> None:
    store = Store(str(work / "store"), str(work / "scratch"))
    began = time.perf_counter()
    release = synthetic_release.make(store, options.titles, USERS, 1, options.exact_limit)
    settings = load_settings()
    write_pointer(store, settings.release.model_name, "1", release)
    print(f"release of {options.titles:,} titles made in {time.perf_counter() - began:.0f} s", flush=True)
    effort = Bundle.load(store, release).manifests["build_index"].facts["ef_search"]
    load_before = os.getloadavg()[0]
    exact = options.titles <= options.exact_limit
    kinds = {"exact" if exact else "HNSW": False, f"{'exact' if exact else 'HNSW'}, with reasons": True}
    latency: dict[str, Load] = {}
    busy: dict[str, Load] = {}
    baseline: dict[str, Load] = {}
    server = Server(work, free_port(), workers=options.workers, threads=options.threads)
    try:
        asyncio.run(closed_loop(server.port, 4, 3.0))  # warm
        share, recall = exact_share(store, release, server.port, options.queries)
        # A collection of what the comparison left here would stop the clock of the load for a quarter of a second, and
        # look like a service that stalls.
        gc.collect()
        gc.freeze()
        print(f"exact share {share:.4f}, recall@100 {recall:.4f} on {options.queries} queries", flush=True)
        for kind, reasons in kinds.items():
            latency[kind] = asyncio.run(
                open_loop(server.port, options.rate, options.seconds, reasons=reasons)
            )
            print(f"{kind}, {options.rate:g}/s: {said(latency[kind])}", flush=True)
            busy[kind] = asyncio.run(closed_loop(server.port, options.clients, options.seconds / 2, reasons))
        memory = server.memory_mb()
    finally:
        server.stop()
    if exact:
        plain = Server(work, free_port(), baseline=True, workers=1, max_batch=1, threads=options.threads)
        try:
            asyncio.run(closed_loop(plain.port, 4, 3.0))
            for kind, reasons in kinds.items():
                baseline[kind] = asyncio.run(
                    closed_loop(plain.port, options.clients, options.seconds / 2, reasons)
                )
        finally:
            plain.stop()
    load_after = os.getloadavg()[0]
    for kind in kinds:
        ratio = busy[kind].rate / baseline[kind].rate if exact else None
        print(f"{kind}, at saturation: {busy[kind].rate:.0f}/s, ratio {ratio}", flush=True)
        row = {
            "titles": options.titles,
            "index": kind,
            "rate": f"{options.rate:g}",
            "p50_ms": f"{latency[kind].quantile(0.5):.2f}",
            "p99_ms": f"{latency[kind].quantile(0.99):.2f}",
            "exact_share": f"{share:.4f}",
            "throughput_ratio": "" if ratio is None else f"{ratio:.2f}",
        }
        extra = {
            "recall": f"{recall:.4f}",
            "throughput": f"{busy[kind].rate:.0f}",
            "baseline": f"{baseline[kind].rate:.0f}" if exact else "",
            "memory": f"{memory:.0f}",
            "load": f"{load_before:.1f} before, {load_after:.1f} after",
            "errors": latency[kind].failed + busy[kind].failed,
            "effort": "" if effort is None else f", ef_search {effort}",
        }
        write_page(options, name_of(row), extra, row)


def said(load: Load) -> str:
    return f"p50 {load.quantile(0.5):.2f} ms, p99 {load.quantile(0.99):.2f} ms, {dict(load.statuses)}"


def name_of(row: dict[str, Any]) -> str:
    """What a row of the table is kept under."""
    return f"{row['titles']} {row['index']}"


def write_page(
    options: argparse.Namespace, name: str, extra: dict[str, Any], row: dict[str, Any] | None = None
) -> None:
    """Keep what was found under a name, put the row of a size into the table, and write the page from all of it.

    Args:
        extra: what the page says besides the table; of an act that has no row, `said` is its sentence.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "serving.csv"
    rows: list[dict[str, Any]] = []
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    if row:
        rows = sorted(
            [*(one for one in rows if name_of(one) != name), row],
            key=lambda one: (int(one["titles"]), one["index"]),
        )
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    notes = options.out / "serving.notes.json"
    kept = json.loads(notes.read_text()) if notes.exists() else {}
    command = " ".join(["python -m benchmarks.serving", *sys.argv[1:]])
    kept[name] = {**extra, "command": command, "commit": commit()}
    notes.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    (options.out / "serving.md").write_text("\n".join(page(rows, kept, options.queries)), encoding="utf-8")


def page(rows: Sequence[dict[str, Any]], kept: dict[str, dict[str, Any]], queries: int) -> list[str]:
    """Lines of the page: the table, what it rests on, and the acts that have no row in it."""
    lines = [
        "# The service under load",
        "",
        "Real HTTP to `python -m serving` on one machine, the load generator on the same cores. A made-up catalogue of",
        "vectors of 128 numbers, 20,000 podcasts, users with a history of 40 titles (`benchmarks/synthetic_release.py`).",
        f"Every request asks for {K} titles; its user vector is computed when it comes. Times count from the",
        "moment at which a request was due (Poisson arrivals), so a stall cannot hide.",
        "",
        "| titles | index | requests a second | p50 ms | p99 ms | exact answers | recall@100 | at saturation | one `IndexFlatIP` query at a time, same HTTP layer | ratio |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in rows:
        own = kept.get(name_of(one), {})
        lines.append(
            f"| {int(one['titles']):,} | {one['index']} | {one['rate']} | {one['p50_ms']} | {one['p99_ms']} | "
            f"{float(one['exact_share']):.2%} | {own.get('recall', '')} | {own.get('throughput', '')}/s | "
            f"{own.get('baseline') or '–'}{'/s' if own.get('baseline') else ''} | {one['throughput_ratio'] or '–'} |"
        )
    lines += [
        "",
        f"Exact: the scores of the {K} titles are the {K} best float32 inner products over the whole catalogue, on "
        f"{queries:,} queries; of equal scores either title may stand.",
        "",
        "| titles, index | command | commit | load of the machine | memory of the service | failed requests |",
        "|---|---|---|---|---:|---:|",
    ]
    for one in rows:
        own = kept.get(name_of(one), {})
        lines.append(
            f"| {int(one['titles']):,}, {one['index']}{own.get('effort', '')} | `{own.get('command', '')}` | `{own.get('commit', '')}` | "
            f"{own.get('load', '')} | {own.get('memory', '')} MiB | {own.get('errors', '')} |"
        )
    acts = {name: own for name, own in kept.items() if "said" in own}
    if acts:
        lines += ["", "| act | seen | command | commit |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {own['said']} | `{own['command']}` | `{own['commit']}` |"
            for name, own in acts.items()
        ]
    lines += [
        "",
        f"Machine: {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}. A load above the number of",
        "cores says that other work ran on the machine at the time; latencies are then too long.",
        "",
    ]
    return lines


def swaps(options: argparse.Namespace, work: Path) -> None:
    """Swap between two versions under load; every sixth swap goes back to the version before."""
    store = Store(str(work / "store"), str(work / "scratch"))
    titles = min(options.titles, 20_000)
    releases = [synthetic_release.make(store, titles, USERS, seed) for seed in (1, 2)]
    model = load_settings().release.model_name
    write_pointer(store, model, "1", releases[0])
    server = Server(work, free_port(), workers=options.workers, threads=options.threads)
    expected: dict[tuple[int, int], list[str]] = {}
    mixed, statuses, took = 0, Counter[int](), list[float]()

    async def ask(done: asyncio.Event) -> None:
        nonlocal mixed
        connections, random = Connections(server.port), np.random.default_rng(3)
        pending: set[asyncio.Task[None]] = set()

        async def one(user: int) -> None:
            nonlocal mixed
            sent = time.perf_counter()
            status, content = await connections.post(body_of(user))
            took.append((time.perf_counter() - sent) * 1e3)
            statuses[status] += 1
            if status == 200:
                answer = json.loads(content)
                titles = [title["id"] for title in answer["recommendations"]]
                # Odd versions are of the first release, even ones of the second.
                own = expected.setdefault((int(answer["model_version"]) % 2, user), titles)
                mixed += own != titles

        while not done.is_set():
            pending.add(task := asyncio.create_task(one(int(random.integers(200)))))
            task.add_done_callback(pending.discard)
            await asyncio.sleep(random.exponential(1 / options.rate))
        await asyncio.gather(*pending)

    async def run() -> int:
        import httpx

        done = asyncio.Event()
        asking = asyncio.create_task(ask(done))
        version, rollbacks = 1, 0
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as http:
            for number in range(1, options.swaps + 1):
                back = number % 6 == 0
                rollbacks += back
                version = version - 1 if back else version + 1
                write_pointer(store, model, str(version), releases[(version + 1) % 2])
                while (await http.get("/readyz")).json()["model_version"] != str(version):
                    await asyncio.sleep(0.1)
        done.set()
        await asking
        return rollbacks

    try:
        rollbacks = asyncio.run(run())
    finally:
        server.stop()
    failed = sum(n for status, n in statuses.items() if status != 200)
    seen = (
        f"{options.swaps - rollbacks} swaps and {rollbacks} rollbacks under {options.rate:g} requests a second, {titles:,} titles: "
        f"{sum(statuses.values()):,} requests, {failed} failed, {mixed} answers that mix versions; p99 {np.quantile(took, 0.99):.0f} ms, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(seen, dict(statuses))
    write_page(options, "swaps", {"said": seen})
    if failed or mixed:
        raise SystemExit(1)


def soak(options: argparse.Namespace, work: Path) -> None:
    """Steady load; memory and p99 by minute."""
    store = Store(str(work / "store"), str(work / "scratch"))
    release = synthetic_release.make(store, options.titles, USERS, 1, options.exact_limit)
    write_pointer(store, load_settings().release.model_name, "1", release)
    server = Server(work, free_port(), workers=options.workers, threads=options.threads)
    by_minute: list[float] = []
    statuses = Counter[int]()
    try:
        for minute in range(int(options.soak_minutes)):
            found = asyncio.run(open_loop(server.port, options.rate, 60.0, seed=minute))
            by_minute.append(server.memory_mb())
            statuses += found.statuses
            print(
                f"minute {minute + 1}: {by_minute[-1]:.0f} MiB ({by_minute[-1] / by_minute[0] - 1:+.1%}), "
                f"p99 {found.quantile(0.99):.1f} ms, {dict(found.statuses)}",
                flush=True,
            )
    finally:
        server.stop()
    half = len(by_minute) // 2
    seen = (
        f"{len(by_minute)} minutes at {options.rate:g} requests a second, {options.titles:,} titles: {statuses.total():,} requests, "
        f"{statuses.total() - statuses[200]} failed; memory {by_minute[0]:.0f} MiB after the first minute, {by_minute[half]:.0f} in the "
        f"middle, {by_minute[-1]:.0f} at the end, {max(by_minute):.0f} at most; load {os.getloadavg()[0]:.1f}"
    )
    print(seen)
    write_page(options, "soak", {"said": seen})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--titles", type=int, default=250_000)
    parser.add_argument(
        "--exact-limit", type=int, default=500_000, help="titles up to which the index is exact"
    )
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=64, help="at saturation")
    parser.add_argument("--queries", type=int, default=2_000, help="compared with exact results")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--swaps", type=int, default=0)
    parser.add_argument("--soak-minutes", type=float, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--work", type=Path, help="keep the made-up release here, for the next time")
    parser.add_argument("--baseline", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.baseline:
        serve_baseline(load_settings())
        return
    with tempfile.TemporaryDirectory() as folder:
        act = swaps if options.swaps else soak if options.soak_minutes else main_benchmark
        act(options, options.work or Path(folder))


if __name__ == "__main__":
    main()
