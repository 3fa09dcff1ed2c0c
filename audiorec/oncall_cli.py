"""The command line of the watchdog: `audiorec watch`."""

from __future__ import annotations

from typing import Annotated

import typer

from audiorec.terminal import SettingsFile, plain_errors, settings_in_use


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(watch)


def watch(
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    settings_file: SettingsFile = None,
) -> None:
    """The watchdog: look from outside whether Airflow, its runs and the champion are well, and alert if not."""
    with plain_errors():
        import logging

        from audiorec.oncall import watchdog

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        watchdog.watch(settings_in_use(settings_file), once=once)
