"""Commands about answering: `audiorec serve | recommend | faithfulness`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from audiorec.errors import BadSettings
from audiorec.terminal import SettingsFile


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(serve)
    app.command()(recommend)
    app.command()(faithfulness)


def serve(settings_file: SettingsFile = None) -> None:
    """Answer over HTTP from the champion, until interrupted; `audiorec up` runs it beside Airflow and MLflow."""
    from audiorec.terminal import plain_errors, settings_of

    with plain_errors():
        # By name: the service stands above this room and imports it.
        import_module("serving.__main__").serve(settings_of(settings_file))


def recommend(
    user_id: str,
    k: Annotated[int, typer.Option(min=1, max=100, help="Titles wanted.")] = 10,
    language: Annotated[str | None, typer.Option(help="Only titles in this language.")] = None,
    settings_file: SettingsFile = None,
) -> None:
    """Audiobooks for one user, with reasons, from the champion."""
    from audiorec.terminal import console, plain_errors, settings_in_use

    with plain_errors():
        from audiorec.demo import recommendation_table
        from audiorec.forget import Forgotten
        from audiorec.recommend import Asked, Recommender
        from audiorec.withheld import Withheld

        settings = settings_in_use(settings_file)
        recommender = Recommender.champion(settings)
        withheld = Withheld(settings.serving, Forgotten(settings))
        if withheld.is_forgotten(user_id):
            raise BadSettings(
                "this user is forgotten (audiorec forgotten, serving.forgotten_file); nothing of them is used"
            )
        caption = (
            f"{user_id} ({recommender.about(user_id)}), version {recommender.version} of {recommender.as_of}"
        )
        answer = recommender.answer(withheld.apply(Asked(user_id=user_id, k=k, language=language)))
        console.print(recommendation_table(caption, answer.titles))


def faithfulness(
    users: Annotated[int, typer.Option(min=1, help="Users in the sample.")] = 300,
    out: Annotated[Path, typer.Option(help="Folder for the page, its table and its figure.")] = Path(
        "docs/results"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 1,
    settings_file: SettingsFile = None,
) -> None:
    """Measure whether the champion's reasons are true: what scores lose when their evidence is taken away."""
    from audiorec.terminal import console, plain_errors, settings_in_use

    with plain_errors():
        from audiorec.faithfulness import measure, write
        from audiorec.recommend import Recommender

        recommender = Recommender.champion(settings_in_use(settings_file))
        found = measure(recommender, users, seed=seed)
        page = write(found, recommender, out, f"audiorec faithfulness --users {users} --seed {seed}")
        console.print(
            f"evidence lowers the score in {found.lowered.mean:.1%} of {len(found.cases)} cases; written: {page}",
            highlight=False,
        )
