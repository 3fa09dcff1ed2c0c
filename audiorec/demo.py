"""What a run gave, for people: recommendations with reasons for three kinds of user, figures beside popularity's."""

from __future__ import annotations

from datetime import date

import pandas as pd
from rich.console import Console
from rich.table import Table

from audiorec.champion import Bundle, read_pointer
from audiorec.errors import BadData
from audiorec.recommend import Recommendation, Recommender
from audiorec.settings import Settings
from audiorec.store import Store

TITLES = 10


def show_recommendations(console: Console, recommender: Recommender) -> None:
    """Ten titles each for a warm user, one who knows only music and podcasts, and one with country and age only.

    Raises:
        BadData: there is no such user, or fewer than ten titles or a missing reason came back.
    """
    for kind, user_id in recommender.example_users().items():
        if user_id is None:
            raise BadData(
                f"the release of {recommender.as_of} has no {kind.removeprefix('a ')}; use a larger sample"
            )
        found = recommender.recommend(user_id, TITLES)
        if len(found) < TITLES or not all(one.title and one.reason for one in found):
            raise BadData(f"{kind} ({user_id}) got {len(found)} titles with reasons, expected {TITLES}")
        console.print(recommendation_table(f"For {kind}: {user_id} ({recommender.about(user_id)})", found))


def recommendation_table(caption: str, found: list[Recommendation]) -> Table:
    """Titles, authors and reasons, best first."""
    table = Table(title=caption, title_justify="left", title_style="bold", header_style="dim", expand=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("audiobook", max_width=44)
    table.add_column("author", max_width=22, style="dim")
    table.add_column("why", max_width=72)
    for place, one in enumerate(found, 1):
        table.add_row(str(place), one.title, one.author or "", one.reason)
    return table


def show_metrics(console: Console, settings: Settings, as_of: date) -> None:
    """The champion's figures beside those of popularity and of the towers without HGNN, on the full panel.

    Raises:
        BadData: the champion is not of this date.
    """
    store = Store(settings.store.uri, settings.store.scratch)
    pointed = read_pointer(store, settings.release.model_name)
    if pointed is None or date.fromisoformat(pointed[1]["as_of"]) < as_of:
        raise BadData(f"no version of {as_of} is champion; see the verdict of the task `promote`")
    bundle = Bundle.load(store, pointed[1])
    metrics = pd.read_csv(store.open(bundle.manifests["evaluate"], "metrics.csv"))
    metrics = metrics[metrics["panel"] == "full"]
    judged_by = bundle.manifests["evaluate"].settings["evaluation"]
    hit_rate, coverage = f"HR@{judged_by['hit_k']}", f"coverage@{judged_by['depth']}"
    users = (
        int(metrics[(metrics["segment"] == "all") & (metrics["metric"] == hit_rate)]["users"].iloc[0])
        if len(metrics)
        else 0
    )
    table = Table(
        title=f"Hold-out of {bundle.as_of}: {users} users, whole catalogue, 95% intervals",
        title_justify="left",
        title_style="bold",
    )
    for column in ("model", hit_rate, "warm", "cold", "MRR", coverage):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in metrics["model"].unique():
        rows = metrics[metrics["model"] == model].set_index(["segment", "metric"])
        every = rows.loc[("all", hit_rate)]
        table.add_row(
            model,
            f"{every['value']:.3f} [{every['low']:.3f}, {every['high']:.3f}]",
            f"{rows.loc[('warm', hit_rate)]['value']:.3f}",
            f"{rows.loc[('cold', hit_rate)]['value']:.3f}",
            f"{rows.loc[('all', 'MRR')]['value']:.3f}",
            f"{rows.loc[('all', coverage)]['value']:.1%}",
        )
    console.print(table)
