"""The command line of privacy: `audiorec forget | forgotten`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer
from rich.table import Table

from audiorec.terminal import SettingsFile, console, plain_errors, settings_in_use


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (forget, forgotten):
        app.command()(command)


def forget(
    user: Annotated[str, typer.Argument(help="The user's id as the source tables have it.")],
    settings_file: SettingsFile = None,
) -> None:
    """Leave a user out of every later build and answer, and say where the store still holds the user."""
    with plain_errors():
        from audiorec import forget as forgetting

        receipt = forgetting.forget(settings_in_use(settings_file), user)
        console.print(
            f"forgotten since {receipt.since:%Y-%m-%d %H:%M} UTC; pseudonym {receipt.pseudonym}",
            highlight=False,
        )
        console.print(
            f"{receipt.checked} stored version(s) with rows of users were checked; {len(receipt.holdings)} hold the user:",
            highlight=False,
        )
        for dataset, number in sorted(Counter(one.dataset for one in receipt.holdings).items()):
            keys = sorted({one.key for one in receipt.holdings if one.dataset == dataset})
            console.print(f"  {dataset:<18}{number:>6}  {keys[0]} to {keys[-1]}", highlight=False)
        if receipt.holdings:
            console.print(
                f"They are stale from now on, and `audiorec gc --apply` collects them after {receipt.collected_until:%Y-%m-%d}.",
                highlight=False,
            )
        console.print(
            "Weights trained before hold no id of the user; the next training replaces them. "
            "Delete the user in the source tables as well.",
            highlight=False,
        )


def forgotten(settings_file: SettingsFile = None) -> None:
    """Who is forgotten, since when, and where the store still holds somebody."""
    with plain_errors():
        from audiorec import forget as forgetting
        from audiorec.store import Store

        settings = settings_in_use(settings_file)
        store = Store(settings.store.uri, settings.store.scratch)
        table = Table("pseudonym", "since (UTC)", "stored versions that hold the user", header_style="dim")
        for name, held in forgetting.holdings_by_user(store).items():
            dates = sorted({one.key for one in held})
            table.add_row(
                name,
                f"{forgetting.tombstone_since(store, name):%Y-%m-%d %H:%M}",
                f"{len(held)}, {dates[0]} to {dates[-1]}" if held else "none",
            )
        console.print(table if table.row_count else "nobody is forgotten")
