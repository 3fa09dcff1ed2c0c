"""`audiorec experiment`: the page of a table, made once, checked, and refused where it makes no sense."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from audiorec.cli import app
from audiorec.experiments import rivals, scarcity, tables
from audiorec.experiments.pages import COLUMNS
from audiorec.experiments.tables import TABLES
from benchmarks.goals import goals

if TYPE_CHECKING:
    from conftest import Chain

pytestmark = pytest.mark.long

MODELS = {"2T-HGNN", "2T", "popularity, whole window", "popularity, recent", *rivals.MODELS}


@pytest.fixture(scope="module")
def place(tiny_chain: Chain, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the tiny chain's store, a settings file for it, and a way to call the command."""
    from audiorec.settings import as_toml

    work = tmp_path_factory.mktemp("experiment")
    shutil.copytree(tiny_chain.settings.store.uri, work / "store")
    settings = tiny.settings(
        Path(tiny_chain.settings.source.uri),
        work,
        rivals={
            "als_factors": 8,
            "bpr_factors": 8,
            "bpr_iterations": 20,
            "lightgcn_epochs": 3,
            "gbdt_trees": [10, 30],
            "user_graph_dim": 8,
            "user_graph_steps": 10,
        },
        analysis={"pairs": 3_000, "bootstrap": 40},
        # A file, not a server: what is written there can be read back, and nothing has to be started.
        mlflow={"uri": f"sqlite:///{work}/mlflow.db"},
    )
    (work / "settings.toml").write_text(as_toml(settings))
    client = MlflowClient(settings.mlflow.uri)
    client.create_experiment(settings.mlflow.experiment, artifact_location=str(work / "artifacts"))

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(
            app,
            [
                "experiment",
                *arguments,
                "--as-of",
                tiny_chain.as_of.isoformat(),
                "--settings",
                str(work / "settings.toml"),
                "--out",
                str(work / "pages" / "tiny"),
            ],
        )

    call.work, call.source = work, tiny_chain.settings.source.uri  # type: ignore[attr-defined]
    return call


@pytest.fixture(scope="module")
def made(place: Any) -> Any:
    found = place("table2", "--source", place.source, "--seeds", "1")
    assert found.exit_code == 0, found.output + found.stderr
    return found


def test_the_page_shows_every_model_in_all_panels_and_by_tier(made: Any, place: Any):
    page = (place.work / "pages" / "tiny" / "table2.md").read_text()
    for name in MODELS:
        assert page.count(f"| {name} |") == 4, name  # three panels, and the long tail
    assert "--seeds 1" in page and "commit" in page and "(table2.png)" in page
    assert (place.work / "pages" / "tiny" / "table2.png").stat().st_size > 10_000


def test_the_csv_is_in_long_form_and_agrees_with_the_stored_metrics(made: Any, place: Any, tiny_chain: Chain):
    table = pd.read_csv(place.work / "pages" / "tiny" / "table2.csv", dtype={"seed": str})
    assert list(table.columns) == list(COLUMNS)
    assert set(table["source"]) == {"tiny"} and set(table["table"]) == {"table2"}
    tiers = {f"tier {number}" for number in range(1, 6)} | {"never streamed"}
    assert set(table["segment"]) == {"all", "warm", "cold", "none", "tail"} | tiers
    own = table[(table["model"] == "2T-HGNN") & (table["seed"] == "mean")]
    own = own.set_index(["panel", "segment", "metric"])["value"]
    stored = pd.read_csv(tiny_chain.open("evaluate", "metrics.csv"))
    stored = stored[stored["model"] == "2T-HGNN"].set_index(["panel", "segment", "metric"])["value"]
    for panel in ("known", "full"):
        for segment in ("all", "warm", "cold"):
            for metric in ("HR@10", "MRR"):
                assert own[panel, segment, metric] == pytest.approx(stored[panel, segment, metric], abs=1e-5)
        assert own[panel, "tail", "HR@10"] == pytest.approx(stored[panel, "all", "tail HR@10"], abs=1e-5)


def test_differences_of_the_csv_are_those_of_the_figures_and_of_the_page(made: Any, place: Any):
    """And the page of goals finds them where they are."""
    table = pd.read_csv(place.work / "pages" / "tiny" / "table2.csv", dtype={"seed": str})
    means = table[table["seed"] == "mean"].set_index(["panel", "model", "segment", "metric"])["value"]
    page = (place.work / "pages" / "tiny" / "table2.md").read_text()
    reference = re.search(r"HR@10 warm against (.*) \[95%\]", page)[1]
    for panel in ("known", "full"):
        for model in set(MODELS) - {"2T-HGNN"}:
            for segment in ("all", "warm", "cold"):
                less = means[panel, "2T-HGNN", segment, f"HR@10 less {model}"]
                both = [means[panel, one, segment, "HR@10"] for one in ("2T-HGNN", model)]
                assert less == pytest.approx(both[0] - both[1], abs=2e-5)
    (shown,) = table[
        (table["panel"] == "known")
        & (table["segment"] == "warm")
        & (table["metric"] == f"HR@10 less {reference}")
    ].itertuples()
    assert f"| {shown.value:+.3f} [{shown.low:+.3f}, {shown.high:+.3f}] |" in page

    results = place.work / "goals"
    shutil.copytree(place.work / "pages" / "tiny", results / "online_retail")
    lines = [one for one in goals(results) if one.data == "Online Retail" and "known" in one.goal]
    assert {one.goal[:7] for one in lines if one.reached is None} == {"5% of t", "1% of t"}


def test_a_second_time_nothing_is_computed(made: Any, place: Any):
    before = {path: path.stat().st_mtime_ns for path in (place.work / "store").rglob("manifest.json")}
    again = place("table3", "--source", place.source, "--seeds", "1")
    assert again.exit_code == 0, again.output + again.stderr
    # Table 3 has the same cells, so it is a page and nothing else.
    assert ": evaluate\n" not in again.output and ": rivals\n" not in again.output
    assert before == {path: path.stat().st_mtime_ns for path in (place.work / "store").rglob("manifest.json")}


def test_check_tells_a_current_page_from_a_stale_one(made: Any, place: Any):
    current = place("table2", "--source", place.source, "--seeds", "1", "--check")
    assert current.exit_code == 0 and "current" in current.output
    more = place("table2", "--source", place.source, "--seeds", "2", "--check")
    assert more.exit_code == 1 and "seed 2: not on the page" in more.stderr
    record = place.work / "pages" / "tiny" / "table2.cells.json"
    kept = record.read_text()
    changed = json.loads(kept)
    changed["cells"] = dict.fromkeys(changed["cells"], "0" * 16)
    record.write_text(json.dumps(changed))
    stale = place("table2", "--source", place.source, "--seeds", "1", "--check")
    record.write_text(kept)
    assert stale.exit_code == 1 and "made with other inputs, settings or code" in stale.stderr


def test_the_scarcity_page_has_a_column_a_share(made: Any, place: Any, monkeypatch: pytest.MonkeyPatch):
    for module in (tables, scarcity):  # each share is a chain of its own; two of the four will do
        monkeypatch.setattr(module, "SHARES", (1.0, 0.05))
    found = place("scarcity", "--source", place.source, "--seeds", "1")
    assert found.exit_code == 0, found.output + found.stderr
    page = (place.work / "pages" / "tiny" / "scarcity.md").read_text()
    assert page.count("| model | 100% of pairs | 5% of pairs |") == 8
    table = pd.read_csv(place.work / "pages" / "tiny" / "scarcity.csv")
    assert set(table["table"]) == {"scarcity 1", "scarcity 0.05"}
    less = table[(table["model"] == "2T-HGNN") & table["metric"].str.startswith("HR@10 less ")]
    assert set(less["metric"]) == {f"HR@10 less {other}" for other in scarcity.AGAINST}
    # The whole share is the ordinary run of table 2, judged on the same users as every other share.
    ordinary = pd.read_csv(place.work / "pages" / "tiny" / "table2.csv")
    ours = [
        one[(one["model"] == "2T-HGNN") & (one["metric"] == "HR@10") & (one["seed"] == "mean")]
        for one in (table[table["table"] == "scarcity 1"], ordinary)
    ]
    np.testing.assert_array_equal(ours[0]["value"], ours[1]["value"])
    cover = table[(table["model"] == "2T-HGNN") & (table["metric"] == "coverage@100")]
    known = cover[(cover["panel"] == "known") & (cover["segment"] == "all")].set_index("table")["value"]
    section = page.split("## coverage@100, panel known")[1].split("##")[0]
    assert f"| 2T-HGNN | {known['scarcity 1']:.3f} | {known['scarcity 0.05']:.3f} |" in section
    users = table[(table["metric"] == "HR@10") & (table["seed"] == "mean")].groupby(["panel", "segment"])[
        "users"
    ]
    assert (users.nunique() == 1).all()
    assert (place.work / "pages" / "tiny" / "scarcity.png").stat().st_size > 10_000


def test_the_analysis_page_and_its_run_in_mlflow(place: Any):
    """One command: the page with plots, the CSV in long form, both in MLflow; a second time the same run."""
    client = MlflowClient(f"sqlite:///{place.work}/mlflow.db")
    found = place("analysis", "--source", place.source)
    assert found.exit_code == 0, found.output + found.stderr
    assert "in MLflow: sqlite" in found.output and "not in MLflow" not in found.output
    out = place.work / "pages" / "tiny"
    page = (out / "analysis.md").read_text()
    plots = [f"analysis_{part}.png" for part in ("concentration", "similarity", "odds", "co_occurrence")]
    for name in plots:
        assert f"({name})" in page and (out / name).stat().st_size > 10_000
    table = pd.read_csv(out / "analysis.csv", dtype={"seed": str})
    assert list(table.columns) == list(COLUMNS) and set(table["seed"]) == {"mean", "1"}
    figures = table[table["seed"] == "mean"].set_index(["panel", "model", "segment", "metric"])
    share = figures.loc[("concentration", "users", "audiobooks", "hours of the top 25%")]
    assert 0.25 < share["low"] < share["value"] < share["high"] < 1
    # The simulator's users who share a title have alike podcasts; random ones less so.
    effect = figures.loc[("similarity", "users who share a title", "joined against random", "Cohen's d")]
    assert effect["value"] > 0 and effect["low"] < effect["value"] < effect["high"]
    rows = figures.loc["co-occurrence of signals"].groupby(level="model")["value"].sum()
    assert rows.to_numpy() == pytest.approx(1, abs=4e-5)  # four figures of five decimals

    again = place("analysis", "--source", place.source)
    assert again.exit_code == 0 and ": analysis\n" not in again.output
    current = place("analysis", "--source", place.source, "--check")
    assert current.exit_code == 0 and "current" in current.output
    [run] = client.search_runs(
        [client.get_experiment_by_name("audiobook_recommender").experiment_id],
        "tags.`audiorec.experiment` = 'analysis'",
    )
    assert run.data.tags["audiorec.source"] == "tiny" and run.info.status == "FINISHED"
    stored = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert stored == {"analysis.md", "analysis.csv", "analysis.cells.json", *plots}
    # Another seed draws other pairs; what does not depend on them stays.
    two = place("analysis", "--source", place.source, "--seeds", "2")
    assert two.exit_code == 0, two.output + two.stderr
    table = pd.read_csv(out / "analysis.csv", dtype={"seed": str}).set_index(
        ["model", "metric", "segment", "seed"]
    )
    cosine = table.loc[("users who share a title", "cosine", "random")]["value"]
    assert cosine["1"] != cosine["2"] and cosine["mean"] == pytest.approx(
        (cosine["1"] + cosine["2"]) / 2, abs=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["table9", "--source", "SOURCE"],
            "experiment 'table9' is unknown; expected one of table1, table2, table3, table4, scarcity, analysis",
        ),
        (["table2", "--source", "/nowhere"], "/nowhere"),
        (
            ["table2", "--source", "SOURCE", "--window-days", "some"],
            "--window-days is 'some'; expected a number of days, or all",
        ),
        (["table2", "--source", "SOURCE", "--window-days", "0"], "time.window_days is 0"),
        (["table2", "--source", "SOURCE", "--holdout-days", "0"], "time.holdout_days"),
        (["table1", "--source", "SOURCE", "--check"], "the page was never made"),
        (["table2", "--source", "SOURCE", "--config", "mine"], "Input should be 'default' or 'paper'"),
    ],
)
def test_wrong_inputs_get_a_clear_answer(place: Any, arguments: list[str], said: str):
    found = place(*[place.source if one == "SOURCE" else one for one in arguments])
    assert found.exit_code != 0
    assert said in found.stderr
    assert "Traceback" not in found.output + found.stderr


def test_rivals_that_no_seed_changes_are_fitted_once():
    cells = [cell for cell in TABLES["table2"].cells((1, 2, 3)) if cell.task == "rivals"]
    names = [name for cell in cells for name in cell.overrides["rivals"]["models"]]
    assert {name: names.count(name) for name in rivals.MODELS} == {
        name: 1 if name in {"LLM-KNN", "item-kNN", "item-kNN x recent popularity", "EASE"} else 3
        for name in rivals.MODELS
    }


@pytest.mark.parametrize("name", TABLES)
def test_cells_have_labels_of_their_own_and_settings_that_load(name: str):
    from datetime import date

    from audiorec.experiments.cells import Experiment

    cells = TABLES[name].cells((1, 2))
    assert len({cell.label for cell in cells}) == len(cells)
    experiment = Experiment("somewhere", date(2026, 1, 1), None, "smoke")
    for cell in cells:
        settings = experiment.settings(cell)
        assert settings.hgnn.seed == cell.seed and settings.two_tower.seed == cell.seed


def test_the_papers_configuration_is_a_row_of_table_1_and_an_option_of_all(place: Any):
    from datetime import date

    from audiorec.experiments.command import describe
    from audiorec.settings import load_settings

    wanted = describe("table1", "somewhere", date(2026, 1, 1), None, None, None, None, "smoke", None)
    whole_model, row, *_ = wanted.cells
    assert (whole_model.name, row.name) == ("2T-HGNN", "the paper's configuration")
    paper = load_settings(None, "smoke", recipe="paper")
    assert wanted.experiment.settings(row).graph == paper.graph != load_settings(None, "smoke").graph
    whole = describe("table2", "somewhere", date(2026, 1, 1), None, None, None, None, "smoke", None, "paper")
    assert "--config paper" in whole.command
    assert {whole.experiment.settings(cell).recipe for cell in whole.cells} == {"paper"}


def test_settings_as_toml_come_back_as_they_were(tmp_path: Path):
    from audiorec.settings import as_toml, load_settings

    for profile in ("smoke", "standard", "full"):
        settings = load_settings(
            None, profile, hgnn={"max_epochs": 7}, recipe="paper", time={"window_days": "all"}
        )
        path = tmp_path / f"{profile}.toml"
        path.write_text(as_toml(settings))
        back = load_settings(path)
        assert back.model_dump(exclude={"profile"}) == settings.model_dump(exclude={"profile"})
