"""The command line of the cluster on one machine: `audiorec cluster`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from audiorec.terminal import Profile, SettingsFile, console, plain_errors, settings_of


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(cluster)


def cluster(
    profile: Profile = "smoke",
    workers: Annotated[int, typer.Option(min=1, help="Celery workers.")] = 2,
    settings_file: SettingsFile = None,
) -> None:
    """The DAG as on several machines: Celery workers, Postgres, Redis and a store on S3, all on loopback."""
    with plain_errors():
        from audiorec.cli import DEMO_MODEL, sample_tables, trigger_and_show
        from audiorec.settings import as_toml, load_settings
        from audiorec.stack.control import MODEL_VARIABLE
        from audiorec.stack.layout import write_private
        from audiorec.stack.servers import Servers, cluster_settings

        settings = settings_of(settings_file)
        servers = Servers.of(settings)
        servers.start(say=lambda text: console.print(text))
        # The registry outlives the store: a champion of another store must not be in the way of this one's.
        os.environ.setdefault(MODEL_VARIABLE, f"{DEMO_MODEL}_{servers.started_as}")
        file = servers.home / "settings.toml"
        write_private(
            file,
            as_toml(load_settings(settings_file, profile, **cluster_settings(settings, servers, workers))),
        )
        environment = servers.home / "environment"
        write_private(
            environment,
            "".join(
                f"{name}={value}\n"
                for name, value in {**servers.environment, "AUDIOREC_SETTINGS": str(file)}.items()
            ),
        )
        ours = settings_of(file, profile)
        as_of = sample_tables(Path(ours.source.uri))
        trigger_and_show(ours, file, as_of, {"profile": profile}, step=2)
        console.print(
            f"The store is {ours.store.uri}, in the memory of a server on this machine. For other commands in a shell: "
            f"`set -a; . {environment}; set +a`. `make down` ends everything, and the store with it.",
            highlight=False,
            soft_wrap=True,
        )
