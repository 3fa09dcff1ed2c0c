"""Experiments through the real Airflow: 5 backfills, 13 outages, 14 a scheduler and a worker killed in mid-training."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from datetime import date
from unittest.mock import patch

import fsspec
import psutil

from audiorec import stack
from audiorec.chain import CHAIN
from audiorec.settings import as_toml, load_settings
from audiorec.stack.layout import DAG_ID
from audiorec.stack.servers import Servers, cluster_settings, free_ports
from audiorec.store import Store
from benchmarks.chaos.lab import AS_OF, DAY, Lab, Place, wait_for
from benchmarks.chaos.report import Experiment, Row
from benchmarks.chaos.services import (
    AS_IN_THE_FILE,
    BEFORE_ALL_DATA,
    Relay,
    Services,
    Sink,
    manifests_of,
    running,
    served_place,
)

OUTAGE_SECONDS = 30.0
RESTARTS = 5
BACKFILLED_DAYS = 7


# --- 5


def backfilled(lab: Lab, order: str, days: list[date]) -> tuple[dict[str, bytes], str]:
    """Manifests of the days after a backfill in an order, and what happened to the champion."""
    place = served_place(lab, f"backfill-{order}")
    with running(place) as services:
        first = services.wait(services.trigger(days[-1] + DAY))
        if first.state != "success":
            raise RuntimeError(f"the first run ended as {first.state}")
        before = services.champion()
        client = services.client
        if order in ("forward", "reverse"):
            backfill = client.create_backfill(
                DAG_ID,
                days[0],
                days[-1],
                params=AS_IN_THE_FILE,
                max_active_runs=2,
                backwards=order == "reverse",
            )
            wait_for(lambda: client.backfill_finished(backfill), 3_600, f"the backfill {order}")
        else:
            # Airflow knows no such order: a backfill a day.
            for day in days:
                backfill = client.create_backfill(DAG_ID, day, day, params=AS_IN_THE_FILE)
                wait_for(lambda number=backfill: client.backfill_finished(number), 900, f"{day}")
        failed = [
            run.run_id for run in client.runs(DAG_ID) if run.run_type == "backfill" and run.state != "success"
        ]
        if failed:
            raise RuntimeError(f"backfill {order}: {', '.join(failed)} did not succeed")
        after = services.champion()
        kept = manifests_of(place, sorted(days))
    return kept, "stayed" if before == after and before is not None else f"moved from {before} to {after}"


def backfills(lab: Lab, seed: int, short: bool) -> list[Row]:
    """The same dates forward, backward and at random, each in a store of its own."""
    days = [AS_OF - number * DAY for number in range(2 if short else BACKFILLED_DAYS, 0, -1)]
    shuffled = list(days)
    random.Random(seed).shuffle(shuffled)
    found = {
        "forward": backfilled(lab, "forward", days),
        "reverse": backfilled(lab, "reverse", days),
        "random": backfilled(lab, "random", shuffled if shuffled != days else days[::-1]),
    }
    reference = found["forward"][0]
    results = {path.split("/", 1)[0] for path in reference}
    differing = {
        order: sorted(path for path in {*reference, *kept} if kept.get(path) != reference.get(path))
        for order, (kept, _) in found.items()
    }
    return [
        Row(
            f"{len(days)} dates, forward, reverse and at random: every manifest equal",
            f"{len(reference)} manifests, {sum(map(len, differing.values()))} differ",
            not any(differing.values()) and set(CHAIN) <= results,
            "; ".join(f"{order}: {', '.join(paths[:5])}" for order, paths in differing.items() if paths),
        ),
        Row(
            "the champion never moves by a backfill",
            ", ".join(f"{order}: {moved}" for order, (_, moved) in found.items()),
            all(moved == "stayed" for _, moved in found.values()),
        ),
    ]


# --- 14


def scheduler_restarts(lab: Lab, seed: int, short: bool) -> list[Row]:
    """kill -9 of the scheduler while a training runs, a date each."""
    place = served_place(lab, "scheduler")
    # The first ones are dates of the reference, which has one in its short form.
    days = [AS_OF] if short else [AS_OF + DAY - number * DAY for number in range(RESTARTS)]
    killed, states, tries = 0, [], []
    with running(place) as services:
        for day in days:
            run_id = services.trigger(day)
            wait_for(lambda day=day: bool(services.children("train_hgnn", day)), 900, "a training")
            services.process("scheduler").kill()
            killed += 1
            run = services.wait(run_id)
            states.append(run.state)
            tries.append(services.state(run_id, "train_hgnn").try_number)
        store = services.place.store
        twice = [
            f"{task} of {day}"
            for day in days
            for task in CHAIN
            if len(store.versions(task, day.isoformat())) != 1
        ]
        versions = services.versions()
        unreadable = services.place.unreadable()
    reference = manifests_of(lab.reference, days)
    kept = place.manifests()
    equal = [path for path, data in reference.items() if kept.get(path) == data]
    return [
        Row(
            f"{len(days)} kills of the scheduler in mid-training: every run ends well by itself",
            f"{states.count('success')} of {killed}",
            states.count("success") == len(days),
            f"tries of train_hgnn: {', '.join(map(str, tries))}",
        ),
        Row("0 results committed twice or not at all", str(len(twice)), not twice, ", ".join(twice)),
        Row(
            "one registered version a date",
            ", ".join(f"{day}: {versions.get(day, 0)}" for day in sorted(days)),
            all(versions.get(day) == 1 for day in days),
        ),
        Row("0 readable partial results", str(len(unreadable)), not unreadable, "; ".join(unreadable[:3])),
        Row(
            "manifests equal to an undisturbed run's",
            f"{len(equal)} of {len(reference)}",
            len(equal) == len(reference) > 0,
        ),
    ]


# --- 13


def as_undisturbed(lab: Lab, store: Store, day: date) -> tuple[int, int]:
    """How many of the reference's results of a date a store has too, which need not be a folder; and how many there are."""

    def results(of: Store) -> dict[str, str]:
        return {
            task: found.model_dump_json() for task in CHAIN for found in of.versions(task, day.isoformat())
        }

    now, calm = results(store), results(lab.reference.store)
    return sum(now.get(task) == result for task, result in calm.items()), len(calm)


@contextlib.contextmanager
def clustered(
    lab: Lab, name: str, *, workers: int, sink: Sink | None = None, relayed: bool = False
) -> Iterator[tuple[Services, dict[str, Relay]]]:
    """A place on the cluster of one machine (Celery, Postgres, Redis, S3), and relays before what can be cut off."""
    [mlflow_port] = free_ports(1)
    with contextlib.ExitStack() as ends:
        draft = served_place(
            lab, name, services={"mlflow_port": mlflow_port}, release={"model_name": name.replace("-", "_")}
        )
        servers = Servers.of(draft.settings)
        # A file system that an earlier cluster left in this process's cache speaks to that one's port.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        servers.start(say=lambda _: None)
        ends.callback(servers.stop)
        targets = {"MLflow": mlflow_port, "Postgres": servers.postgres_port, "store": servers.s3_port}
        relays = {what: Relay(port) for what, port in targets.items()} if relayed else {}
        for relay in relays.values():
            ends.callback(relay.cut)
        ports = {**targets, **{what: relay.port for what, relay in relays.items()}}
        variables = {**servers.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['store']}"}
        ends.enter_context(patch.dict(os.environ, variables))
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        groups = cluster_settings(draft.settings, servers, workers=workers)
        groups["services"]["database_url"] = servers.database_url.replace(
            f":{servers.postgres_port}/", f":{ports['Postgres']}/"
        )
        groups["mlflow"] = {"uri": f"http://127.0.0.1:{ports['MLflow']}"}
        if sink is not None:
            groups["alerts"] = {"webhook_url": sink.uri, "watch": True, "watch_seconds": 5}
        everything = {**draft.settings.model_dump(mode="json"), **groups}
        draft.file.write_text(as_toml(load_settings(**everything)), encoding="utf-8")
        place = Place(draft.folder, load_settings(draft.file))
        yield ends.enter_context(running(place)), relays


def outages(lab: Lab, seed: int, short: bool) -> list[Row]:
    """On the cluster of one machine: MLflow, Postgres, the store and the sink of alerts each away for half a minute."""
    seconds = 5.0 if short else OUTAGE_SECONDS
    rows: list[Row] = []
    with (
        contextlib.closing(Sink()) as sink,
        clustered(lab, "outages", workers=1, sink=sink, relayed=True) as (services, relays),
    ):
        # Where the service is needed: MLflow when a model is registered, the others in mid-work.
        plan = [
            ("MLflow", "promote", AS_OF),
            ("Postgres", "train_hgnn", AS_OF + DAY),
            ("store", "build_graph", AS_OF - DAY),
        ]
        for what, task, day in plan[: 1 if short else None]:
            rows += _outage(services, lab, sink, what, task, day, relays[what], seconds)
        rows.append(_sink_outage(services, sink, seconds))
    return rows


def _outage(
    services: Services,
    lab: Lab,
    sink: Sink,
    what: str,
    task: str,
    day: date,
    relay: Relay,
    seconds: float,
) -> list[Row]:
    """A run during which something is away; if it fails, it is cleared as an alert advises."""
    run_id = services.trigger(day)
    wait_for(lambda: bool(services.children(task, day)), 900, task)
    relay.cut()
    time.sleep(seconds)
    relay.join()
    wait_for(lambda: _health(services), 300, "Airflow after the outage")
    run = services.wait(run_id)
    told = [alert["code"] for _, alert in sink.arrived if alert.get("data_date") == day.isoformat()]
    ended = run.state
    if run.state != "success":
        services.client.clear(DAG_ID, run_id)
        ended = f"failed as {', '.join(told) or 'nothing'}, then {services.wait(run_id).state}"
    healed = run.state == "success" or (bool(told) and ended.endswith("success"))
    equal, calm = as_undisturbed(lab, services.place.store, day)
    versions = services.versions().get(day, 0)
    return [
        Row(
            f"{what} away for {seconds:.0f} s during {task}: heals, or fails by code and heals when cleared",
            ended,
            healed,
        ),
        Row(
            f"{what}: results equal to an undisturbed run's, one version registered",
            f"{equal} of {calm}, {versions}",
            equal == calm > 0 and versions == 1,
        ),
    ]


def _health(services: Services) -> bool:
    with contextlib.suppress(Exception):
        return stack.status(services.place.settings).healthy
    return False


def _sink_outage(services: Services, sink: Sink, seconds: float) -> Row:
    """An alert that is sent while nobody takes it arrives when somebody does, once."""
    sink.down = True
    run = services.wait(services.trigger(BEFORE_ALL_DATA))
    time.sleep(seconds)
    early = sink.first("DQ-CRITICAL", BEFORE_ALL_DATA)
    sink.down = False
    began = time.time()
    arrived = 0.0
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: sink.first("DQ-CRITICAL", BEFORE_ALL_DATA) is not None, 120, "the spooled alert")
        arrived = time.time() - began
    found = [a for _, a in sink.arrived if a["code"] == "DQ-CRITICAL" and a["status"] == "firing"]
    return Row(
        f"the sink of alerts away for {seconds:.0f} s: the alert arrives afterwards, once",
        f"{len(found)} arrived, {arrived:.0f} s after its return; the run ended as {run.state}",
        early is None and len(found) == 1 and run.state == "failed",
    )


# --- a worker of a cluster


def worker_killed(lab: Lab, seed: int, short: bool) -> list[Row]:
    """kill -9 of a Celery worker and all below it while it trains; another goes on."""
    with clustered(lab, "worker-killed", workers=2) as (services, _):
        run_id = services.trigger(AS_OF)
        wait_for(lambda: bool(services.children("train_hgnn", AS_OF)), 900, "a training")
        [training] = services.children("train_hgnn", AS_OF)
        workers = {
            name: services.process(name) for name in services.processes() if name.startswith("worker-")
        }
        [(name, worker)] = [
            (name, one) for name, one in workers.items() if training in one.children(recursive=True)
        ]
        for process in [worker, *worker.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        run = services.wait(run_id)
        tries = services.state(run_id, "train_hgnn").try_number
        store = services.place.store
        results = {task: len(store.versions(task, AS_OF.isoformat())) for task in CHAIN}
        equal, calm = as_undisturbed(lab, store, AS_OF)
        versions = services.versions().get(AS_OF, 0)
    return [
        Row(
            "the DAG on Celery, Postgres, Redis and S3, its worker killed in mid-training: the run succeeds",
            run.state,
            run.state == "success",
            f"{name} of {', '.join(sorted(workers))} killed; tries of train_hgnn: {tries}",
        ),
        Row(
            "nothing twice: one result a task, one version registered",
            f"{sum(number == 1 for number in results.values())} of {len(results)}, {versions}",
            set(results.values()) == {1} and versions == 1,
        ),
        Row(
            "results equal to an undisturbed run's on one machine",
            f"{equal} of {calm}",
            equal == calm > 0,
        ),
    ]


EXPERIMENTS = (
    Experiment("backfill", 5, "Backfills in any order", 5, backfills),
    Experiment("outages", 13, "Outages of MLflow, Postgres, the store and the sink of alerts", 13, outages),
    Experiment("worker", 23, "A Celery worker killed in mid-training", 23, worker_killed),
    Experiment("scheduler", 14, "The scheduler killed in mid-training", 14, scheduler_restarts),
)
