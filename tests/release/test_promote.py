"""Promote from end to end on a real MLflow, over two dates of the tiny chain."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from altered import with_changed_file
from mlflow import MlflowClient

from audiorec.champion import Bundle, describe, pointer_name, read_pointer
from audiorec.cuts import cuts, window_start
from audiorec.embeddings import embed_cut, load_cut_graph, load_model, load_text
from audiorec.errors import BadSettings, Corrupt
from audiorec.experiments.protocol import make_hold_out
from audiorec.features import FeatureBuilder, Vectors
from audiorec.gate import Candidate
from audiorec.history import VersionRef
from audiorec.introduction import introduced
from audiorec.judging import ArtistVectors, load_towers
from audiorec.registry import CHALLENGER, CHAMPION, Registry, Version
from audiorec.release import ReleaseControl
from audiorec.runner import main, run_task
from audiorec.store import MANIFEST, Store
from audiorec.taskio import Inputs
from models.metrics import hit_rate_at_k, paired_bootstrap_interval
from tasks import promote

if TYPE_CHECKING:
    from released import Releases

pytestmark = pytest.mark.long


@dataclass
class Place:
    """A copy of the store and a registered model of its own."""

    releases: Releases
    settings: Any

    @property
    def registry(self) -> Registry:
        return Registry(self.settings)

    @property
    def store(self) -> Store:
        return Store(self.settings.store.uri, self.settings.store.scratch)

    def promote(self, date_number: int, policy: str = "fresh", run_type: str = "manual", **named: Any) -> Any:
        return run_task(
            "promote",
            self.settings,
            self.releases.dates[date_number],
            # As Airflow hands it on; found by hashing the tables anew it would take half the time.
            extract=self.releases.extracts[self.releases.dates[date_number]],
            options={"promote": policy, "run_type": run_type},
            **named,
        )

    def at(self, alias: str) -> Version | None:
        return self.registry.alias(alias)

    def dates(self) -> list[str]:
        """Versions by data date, latest first."""
        return [str(version.as_of) for version in self.registry.versions()]

    def champion(self) -> str | None:
        """Data date of the champion; alias and pointer must agree."""
        version, pointed = self.at(CHAMPION), read_pointer(self.store, self.settings.release.model_name)
        assert (version is None) == (pointed is None)
        if version is None or pointed is None:
            return None
        assert pointed == (version.number, version.release)
        return str(version.as_of)


@pytest.fixture
def place_of(
    releases: Releases, mlflow_uri: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[..., Place]:
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)

    def make(folder: str = "one", **groups: dict[str, Any]) -> Place:
        mlflow = {"uri": mlflow_uri, "experiment": f"{name} {folder}"}
        release = {"model_name": name, **groups.pop("release", {})}
        return Place(releases, releases.copy(tmp_path / folder, mlflow=mlflow, release=release, **groups))

    return make


@pytest.fixture
def place(place_of: Callable[..., Place]) -> Place:
    return place_of()


@pytest.fixture
def same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of the candidate from nowhere, where a test is about what is done with them."""
    monkeypatch.setattr(promote, "_candidate", lambda _, inputs: Candidate(inputs.as_of, 0.5, 100))


# --- day by day ------------------------------------------------------------------------------------------


def test_day_by_day(place: Place, mlflow_client: MlflowClient):
    """The first date is promoted as it is, the next one compared with it, and neither is made twice."""
    first = place.promote(0, run_type="scheduled")
    assert first["state"] == "done"
    assert first["verdict"] == "version 1 promoted: no champion yet: sanity checks alone"
    assert place.champion() == "2026-11-20"

    again = place.promote(0, run_type="scheduled")
    assert (again["state"], again["verdict"]) == ("up_to_date", first["verdict"])
    assert (again["manifest"], again["links"]) == (first["manifest"], first["links"])
    assert place.dates() == ["2026-11-20"]

    second = place.promote(1, run_type="scheduled")
    assert place.dates() == ["2026-11-21", "2026-11-20"]
    assert second["verdict"].startswith("version 2 ")
    entry = mlflow_client.get_model_version(place.registry.name, "2")
    assert f"version 2 {entry.description}" == second["verdict"]
    assert entry.tags["verdict"] == entry.description
    # On the users of the second date's hold-out, HR@10 and history named with figures.
    ranks = promote._candidate_ranks(place.releases.inputs(place.releases.dates[1]))
    users = int(ranks["segment"].isin(("warm", "cold")).sum())
    assert f"against version 1 (2026-11-20) on {users} users" in entry.description
    one = place.registry.find(place.releases.dates[0], entry_fingerprint(mlflow_client, place, "1"))
    assert one is not None
    assert f"the median of 1 promoted version(s), {0.9 * one.hit_rate:.4f}" in entry.description
    assert place.champion() == "2026-11-21"

    # The earlier date once more, with other settings of the gate: nothing new, and no way back.
    assert place.promote(0, policy="force")["state"] == "up_to_date"
    assert place.champion() == "2026-11-21"


def entry_fingerprint(client: MlflowClient, place: Place, number: str) -> str:
    return str(client.get_model_version(place.registry.name, number).tags["fingerprint"])


def test_an_earlier_date_is_registered_only(place: Place):
    place.promote(1)
    for policy in ("fresh", "if_better", "force"):
        found = place.promote(0, policy=policy)
        assert (
            "registered: the champion (version 1, 2026-11-21) is not of an earlier date" in found["verdict"]
        )
        assert place.champion() == "2026-11-21"
    assert place.dates() == ["2026-11-21", "2026-11-20"]


def test_manifests_know_nothing_of_the_registry(place_of: Callable[..., Place], mlflow_client: MlflowClient):
    """Two stores, byte-equal: once in order of dates with a comparison, once backwards with none."""

    def manifests(place: Place) -> dict[str, bytes]:
        folder = Path(place.settings.store.uri)
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob(f"promote/**/{MANIFEST}")}

    one = place_of("one")
    assert "against version" in [one.promote(0), one.promote(1)][1]["verdict"]
    mlflow_client.delete_registered_model(one.registry.name)
    two = place_of("two")
    assert "registered" in [two.promote(1), two.promote(0)][1]["verdict"]
    assert manifests(one) == manifests(two)
    assert len(manifests(one)) == 2


def test_two_processes_at_once_make_one_version(place: Place, tiny: Any):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AUDIOREC_")}
    environment |= tiny.environment(place.settings) | {
        "AUDIOREC_MLFLOW__URI": place.settings.mlflow.uri,
        "AUDIOREC_MLFLOW__EXPERIMENT": place.settings.mlflow.experiment,
        "AUDIOREC_RELEASE__MODEL_NAME": place.settings.release.model_name,
    }
    as_of = str(place.releases.dates[0])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tasks.promote", "--as-of", as_of, "--profile", "smoke"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    results = []
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        results.append(json.loads(output.splitlines()[-1].removeprefix("RESULT ")))
    assert sorted(result["state"] for result in results) == ["done", "up_to_date"]
    assert results[0]["verdict"] == results[1]["verdict"]
    assert place.dates() == [as_of]
    assert place.champion() == as_of


# --- killed ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """No error of ours: nothing may catch it."""


WRITES = {
    "before anything is there": ("create_registered_model", 1),
    "in the middle of the files": ("log_artifact", 3),
    "before the version": ("found_or_made", 1),
    "before the alias": ("set_registered_model_alias", 1),
    "before the description": ("update_model_version", 1),
    "before the first tag": ("set_model_version_tag", 1),
    "before the second tag": ("set_model_version_tag", 2),
    "before the third tag": ("set_model_version_tag", 3),
    "before the last tag": ("set_model_version_tag", 4),
}


@pytest.mark.usefixtures("same_figures")
@pytest.mark.parametrize("moment", [*WRITES, "before the pointer", "before the manifest"])
def test_a_kill_at_any_moment_is_healed_by_the_next_run(
    moment: str, place: Place, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        if moment in WRITES:
            name, number = WRITES[moment]
            call, calls = Registry._call, [0]

            def until(self: Registry, function: Any, *arguments: Any, **named: Any) -> Any:
                calls[0] += function.__name__ == name
                if calls[0] == number and function.__name__ == name:
                    raise Killed
                return call(self, function, *arguments, **named)

            patched.setattr(Registry, "_call", until)
        else:
            owner, name = (promote.released, "write_pointer") if "pointer" in moment else (promote, "_said")

            def killed(*_: Any) -> None:
                raise Killed

            patched.setattr(owner, name, killed)
        with pytest.raises(Killed):
            place.promote(0)
    healed = place.promote(0)
    assert healed["verdict"].startswith("version 1 promoted: ")
    [version] = place.registry.versions()
    assert version.promoted
    assert version.tags["policy"] == "fresh"
    assert version.tags["run_type"] == "manual"
    assert place.champion() == "2026-11-20"
    assert place.promote(0)["state"] == "up_to_date"
    # Only a version that says so counts as history of the next one.
    assert "the median of 1 promoted version(s), 0.4500" in place.promote(1)["verdict"]


@pytest.mark.usefixtures("same_figures")
def test_a_lost_or_damaged_pointer_is_mended_by_the_same_date(place: Place):
    place.promote(0)
    pointer = Path(place.settings.store.uri) / pointer_name(place.settings.release.model_name)
    for damage in (pointer.unlink, lambda: pointer.write_text("[]"), lambda: pointer.write_text("{")):
        damage()
        assert place.promote(0)["state"] == "up_to_date"
        assert place.champion() == "2026-11-20"


# --- what holds the alias back ---------------------------------------------------------------------------


@pytest.mark.usefixtures("same_figures")
def test_the_next_daily_run_does_not_bring_back_what_was_rolled_back(place: Place):
    """Neither while it is held nor afterwards, by no policy; who moved what, and who asked, is in the history."""
    place.promote(0, run_type="scheduled")
    place.promote(1, run_type="scheduled")
    control = ReleaseControl(place.settings)
    assert control.rollback(why="empty shelves", who="ann").after == VersionRef("1", "2026-11-20")
    assert place.champion() == "2026-11-20"
    # The same day cleared and run again, forced, and over the hold; then the day before.
    for policy in ("fresh", "force", "override_hold"):
        assert "rejected by a rollback" in place.promote(1, policy=policy, force=True)["verdict"]
    assert place.promote(0, run_type="scheduled")["state"] == "up_to_date"
    assert place.champion() == "2026-11-20"
    control.release_hold(why="mended", who="ann")
    assert "rejected by a rollback" in place.promote(1, run_type="scheduled", force=True)["verdict"]
    assert place.champion() == "2026-11-20"
    assert place.at(CHALLENGER) is None
    entries = [recorded.entry for recorded in control.history.newest_first()]
    assert [(entry.action, entry.who) for entry in entries] == [
        ("release_hold", "ann"),
        ("rollback", "ann"),
        ("promote", "the schedule"),
        ("promote", "the schedule"),
    ]
    assert entries[2].verdict.startswith("promoted: ")


@pytest.mark.usefixtures("same_figures")
def test_a_rejected_version_never_gets_an_alias(place: Place, mlflow_client: MlflowClient):
    place.promote(0, policy="never")
    mlflow_client.set_model_version_tag(place.registry.name, "1", "rejected", "true")
    mlflow_client.delete_registered_model_alias(place.registry.name, CHALLENGER)
    for policy in ("fresh", "if_better", "force"):
        found = place.promote(0, policy=policy, force=True)
        assert "refused: version 1 was rejected by a rollback" in found["verdict"]
        assert place.at(CHAMPION) is None
        assert place.at(CHALLENGER) is None
        assert read_pointer(place.store, place.settings.release.model_name) is None


@pytest.mark.usefixtures("same_figures")
def test_a_rolled_back_version_is_not_promoted_again(place: Place, mlflow_client: MlflowClient):
    """Rejected after it was champion; its figures count as history no more either."""
    place.promote(0)
    mlflow_client.set_model_version_tag(place.registry.name, "1", "rejected", "true")
    mlflow_client.delete_registered_model_alias(place.registry.name, CHAMPION)
    for policy in ("fresh", "force"):
        place.promote(0, policy=policy, force=True)
        assert place.at(CHAMPION) is None
    assert place.promote(1)["verdict"] == "version 2 promoted: no champion yet: sanity checks alone"
    assert place.at(CHALLENGER) is None


@pytest.mark.usefixtures("same_figures")
def test_history_is_of_promoted_versions_of_earlier_dates(place: Place, mlflow_client: MlflowClient):
    """Of five versions two count, 0.5 and 0.3: neither what was not promoted or rejected nor a later date.

    0.9 x (0.5 + 0.3)/2 = 0.36
    """
    place.promote(0)
    for day, hit_rate, tags in (
        (18, 0.3, {"promoted": "true"}),
        (17, 0.99, {"promoted": "true", "rejected": "true"}),
        (16, 0.99, {}),
        (25, 0.99, {"promoted": "true"}),
    ):
        every = {"hit_rate": str(hit_rate), **tags}
        place.registry.register(date(2026, 11, day), "ff", every, {}, [])
    assert "the median of 2 promoted version(s), 0.3600" in place.promote(1)["verdict"]


@pytest.mark.usefixtures("same_figures")
def test_a_hold_is_respected_until_it_ends(place: Place, mlflow_client: MlflowClient):
    mlflow_client.create_registered_model(place.registry.name)
    mlflow_client.set_registered_model_tag(place.registry.name, "hold", "Ann: recall, until Friday")
    held = place.promote(0)
    assert held["verdict"].startswith(
        "version 1 registered: the alias is held: by hand: Ann: recall, until Friday"
    )
    assert place.champion() is None
    challenger = place.at(CHALLENGER)
    assert challenger is not None
    assert challenger.number == "1"
    mlflow_client.delete_registered_model_tag(place.registry.name, "hold")
    # Judged already; asked to do it again, it is judged anew, and no second version is made.
    assert place.promote(0)["state"] == "up_to_date"
    assert "promoted" in place.promote(0, force=True)["verdict"]
    assert place.champion() == "2026-11-20"
    assert place.dates() == ["2026-11-20"]


@pytest.mark.usefixtures("same_figures")
def test_a_backfill_registers_and_a_later_run_judges(place: Place):
    backfill = place.promote(0, run_type="backfill")
    assert backfill["verdict"].startswith("version 1 registered: a backfill registers")
    assert place.champion() is None
    assert place.at(CHALLENGER) is None
    assert place.promote(0, run_type="backfill")["state"] == "up_to_date"
    assert place.promote(0, run_type="manual")["verdict"].startswith("version 1 promoted")
    assert place.champion() == "2026-11-20"
    # And the other way round: the backfill does not take back what was promoted.
    assert place.promote(0, run_type="backfill")["state"] == "up_to_date"
    assert place.champion() == "2026-11-20"
    assert place.dates() == ["2026-11-20"]


def test_an_unfit_candidate_gets_no_alias_whatever_is_asked(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        promote,
        "_candidate",
        lambda _, inputs: Candidate(inputs.as_of, 0.5, 100, ("vectors are not finite",)),
    )
    found = place.promote(0, policy="force")
    assert found["verdict"] == "version 1 refused: sanity check failed: vectors are not finite"
    assert (place.at(CHAMPION), place.at(CHALLENGER)) == (None, None)


def test_a_champion_that_cannot_be_scored_is_passed_over_with_a_word(
    place: Place, capsys: pytest.CaptureFixture[str]
):
    place.promote(0)
    extract = place.store.versions("embed_music", "2026-11-20")[0]
    (Path(place.settings.store.uri) / "embed_music/2026-11-20" / extract.fingerprint / MANIFEST).unlink()
    found = place.promote(1)
    assert "version 1 (2026-11-20) could not be compared; sanity checks and history alone" in found["verdict"]
    assert "HR@10 0." in found["verdict"]
    assert (
        "cannot be scored on 2026-11-21: the release of 2026-11-20 needs embed_music"
        in capsys.readouterr().out
    )


def test_without_mlflow_promote_exits_as_unavailable(
    place: Place, tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in tiny.environment(place.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AUDIOREC_MLFLOW__TIMEOUT_SECONDS", "0.5")
    with pytest.raises(SystemExit) as ended:
        main("promote", ["--as-of", str(place.releases.dates[0]), "--profile", "smoke"])
    assert ended.value.code == 69
    said = capsys.readouterr().err
    assert "Unavailable: MLflow at http://127.0.0.1:9 (mlflow.uri)" in said
    assert "Start it (`audiorec up`), then clear this task" in said
    assert place.store.keys("promote") == []


# --- the candidate's own figures -------------------------------------------------------------------------


def test_the_candidates_figure_is_the_one_of_the_report(releases: Releases):
    inputs = releases.inputs(releases.dates[0])
    candidate = promote._candidate(releases.settings(), inputs)
    assert candidate.hit_rate == pytest.approx(
        inputs["evaluate"].facts["hit_rate"]["full.2T-HGNN.all"], abs=1e-6
    )
    counts = inputs["evaluate"].facts["counts"]
    assert candidate.users == counts["warm"] + counts["cold"] > 100
    assert candidate.insane == []


@pytest.mark.parametrize(
    ("task", "file", "damage", "said"),
    [
        ("refresh", "item_vectors.npy", lambda v: v * np.nan, ["audiobook vectors are not finite"]),
        ("refresh", "item_vectors.npy", lambda v: v * 0, ["collapsed onto fewer than 10 different ones"]),
        ("evaluate", "ranks.parquet", lambda t: t.assign(rank=0), ["HR@10 is 0 on 1"]),
        ("evaluate", "ranks.parquet", lambda t: t.assign(rank=-1), ["no user of the hold-out could be judged"]),
        ("evaluate", "ranks.parquet", lambda t: t.assign(segment="none"), ["no user of the hold-out could be judged"]),
        ("evaluate", "metrics.csv", lambda t: t.assign(value=0.05), ["coverage 0.0500 is under release.min_coverage 0.2"]),
    ],
)  # fmt: skip
def test_what_makes_a_candidate_unfit(
    task: str, file: str, damage: Any, said: list[str], releases: Releases, tmp_path: Path
):
    settings = releases.copy(tmp_path, release={"min_coverage": 0.2})
    store, as_of = Store(settings.store.uri, settings.store.scratch), releases.dates[0]

    def write(old: Path, new: Path) -> None:
        if old.suffix == ".npy":
            np.save(new, damage(np.load(old)))
        elif old.suffix == ".csv":
            damage(pd.read_csv(old)).to_csv(new, index=False)
        else:
            damage(pd.read_parquet(old)).to_parquet(new)

    sound = releases.inputs(as_of, settings)
    broken = {**sound, task: with_changed_file(store, sound[task], file, write)}
    found = promote._candidate(settings, Inputs(as_of, store, broken)).insane
    assert len(found) == len(said)
    for part, finding in zip(said, found, strict=True):
        assert part in finding


# --- the champion on another date's hold-out -------------------------------------------------------------


def stored_hits(inputs: Inputs) -> np.ndarray:
    return hit_rate_at_k(promote._candidate_ranks(inputs)["rank"].to_numpy(), 10)


def test_scored_as_a_champion_a_version_gets_its_own_figures(releases: Releases):
    """The way on which a champion is scored, walked with the candidate's own bundle, ends where `evaluate` did."""
    as_of = releases.dates[1]
    inputs = releases.inputs(as_of)
    hits = promote._champion_hits(releases.settings(), inputs, releases.bundle(as_of))
    np.testing.assert_array_equal(hits, stored_hits(inputs))


def champion_scores(releases: Releases) -> tuple[np.ndarray, Any, Any]:
    """Scores of yesterday's version at today's split, step by step: users and titles of today's hold-out."""
    settings, today = releases.settings(), releases.inputs(releases.dates[1])
    store, theirs = today.store, releases.bundle(releases.dates[0]).manifests
    extract = promote.load_extract(settings, today)
    days = cuts(releases.dates[1], settings.time)
    hold_out = make_hold_out(extract, days, settings.evaluation)
    text = load_text(store, today["embed_text"])
    graph = load_cut_graph(store, today["build_graph"], "judge")
    embedded = embed_cut(load_model(store, theirs["train_hgnn"]), text, graph)
    vectors = Vectors(text["audiobook"], text["podcast"], embedded["audiobook"], embedded["podcast"])
    towers = load_towers(store, theirs["train_two_tower"])
    artists = ArtistVectors.load(store, theirs["embed_music"])
    builder = FeatureBuilder(
        extract, towers.spec.config, *artists.aligned(extract.artists), days.first_day
    ).with_artists_folded_in(days.split)
    on = np.full(len(hold_out.users), hold_out.split)
    users = towers.user_vectors(builder.users(hold_out.users, on, vectors, towers.spec))
    day_items = builder.items(hold_out.split, vectors, towers.spec)
    # Both get the candidate's share of places for titles that nobody has streamed, whatever the champion's is.
    items, lift, _ = introduced(
        dataclasses.replace(towers, introduction_share=0.1), builder, vectors, hold_out.split, day_items
    )
    assert lift > 0
    return users @ items.T, hold_out, extract


def hits_one_by_one(scores: np.ndarray, hold_out: Any, extract: Any) -> np.ndarray:
    """1 for each user with a title of the hold-out among the ten best of what they had not streamed before."""
    firsts = extract.first_streams
    found = []
    for row, user in enumerate(hold_out.users):
        own = firsts[firsts["user_idx"] == user]
        before = set(own.loc[own["day"] < hold_out.split, "audiobook_idx"])
        wanted = set(own.loc[own["day"] >= hold_out.split, "audiobook_idx"])
        allowed = [
            i
            for i in np.argsort(-scores[row], kind="stable")
            if i not in before and hold_out.candidates["full"][i]
        ]
        found.append(float(bool(wanted & set(allowed[:10]))))
    return np.array(found)


def test_the_champion_is_scored_with_its_weights_and_todays_features(releases: Releases):
    settings, (yesterday, today) = releases.settings(), releases.dates
    inputs, bundle = releases.inputs(today), releases.bundle(yesterday)
    scores, hold_out, extract = champion_scores(releases)
    expected = hits_one_by_one(scores, hold_out, extract)
    ranked: list[np.ndarray] = []
    really = promote.judge

    def judge(hold_out: Any, ranker: Any, depth: int) -> Any:
        ranked.append(ranker(np.arange(len(hold_out.users))))
        return really(hold_out, ranker, depth)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(promote, "judge", judge)
        np.testing.assert_array_equal(promote._champion_hits(settings, inputs, bundle), expected)
    # Scores tell more than hits, which another graph or another day need not change on so small a sample.
    np.testing.assert_array_equal(ranked[0], scores)
    # The comparison is of these two rows of hits, over users with events.
    release = json.dumps(describe(yesterday, bundle.manifests))
    version = Version("1", yesterday, "aa", 0.5, {"release": release})
    judged = promote._candidate_ranks(inputs)["segment"].isin(("warm", "cold")).to_numpy()
    assert not judged.all()
    paired = paired_bootstrap_interval(stored_hits(inputs)[judged], expected[judged], draws=50, seed=1)
    assert promote._difference(settings, inputs, version) == paired
    assert paired.low < paired.high


def test_the_champions_vectors_are_made_at_todays_judge_cut(releases: Releases):
    """Its HGNN weights over today's graph before the split; yesterday's own vectors are others."""
    settings, (yesterday, today) = releases.settings(), releases.dates
    inputs, bundle = releases.inputs(today), releases.bundle(yesterday)
    extract, cut = promote.load_extract(settings, inputs), cuts(today, settings.time).judge
    made = promote._champion_vectors(inputs, bundle, extract, cut, settings.time.window_days)
    store, text = inputs.store, load_text(inputs.store, inputs["embed_text"])
    np.testing.assert_array_equal(made.audiobook_text, text["audiobook"])
    expected = embed_cut(
        load_model(store, bundle.manifests["train_hgnn"]), text, load_cut_graph(store, inputs["build_graph"], "judge")
    )  # fmt: skip
    np.testing.assert_array_equal(made.audiobook_hgnn, expected["audiobook"])
    np.testing.assert_array_equal(made.podcast_hgnn, expected["podcast"])
    own = np.load(store.open(inputs["train_hgnn"], "judge.audiobook.npy"))
    assert not np.array_equal(made.audiobook_hgnn, own)


def test_a_champion_of_other_graph_settings_gets_a_graph_of_its_own(releases: Releases):
    """Built anew by the champion's rule: the same vectors where the rules are the same after all, others where not."""
    settings, (yesterday, today) = releases.settings(), releases.dates
    inputs, bundle = releases.inputs(today), releases.bundle(yesterday)
    extract, cut = promote.load_extract(settings, inputs), cuts(today, settings.time).judge
    stored = promote._champion_vectors(inputs, bundle, extract, cut, settings.time.window_days)

    # The candidate says its graph has another rule, so the champion's is not to be had from it.
    graph = inputs["build_graph"]
    rules = {**graph.settings, "graph": {**graph.settings["graph"], "top_k": 3}}
    other = Inputs(
        today, inputs.store, {**inputs, "build_graph": graph.model_copy(update={"settings": rules})}
    )
    rebuilt = promote._champion_vectors(other, bundle, extract, cut, settings.time.window_days)
    np.testing.assert_array_equal(rebuilt.audiobook_hgnn, stored.audiobook_hgnn)
    np.testing.assert_array_equal(rebuilt.podcast_hgnn, stored.podcast_hgnn)

    theirs = bundle.manifests["build_graph"]
    rules = {**theirs.settings, "graph": {**theirs.settings["graph"], "rule": "min_users", "min_users": 4}}
    sparse = Bundle(
        yesterday, {**bundle.manifests, "build_graph": theirs.model_copy(update={"settings": rules})}
    )
    found = promote._champion_vectors(inputs, sparse, extract, cut, settings.time.window_days)
    assert not np.array_equal(found.audiobook_hgnn, stored.audiobook_hgnn)
    # A longer window is another graph, too, with the same rule.
    longer = promote._champion_vectors(inputs, bundle, extract, cut, 25)
    assert window_start(cut.last_day, 25) < cut.first_day
    assert not np.array_equal(longer.audiobook_hgnn, stored.audiobook_hgnn)


def test_a_champion_of_other_text_settings_gets_texts_of_its_own(releases: Releases, tmp_path: Path):
    settings, (yesterday, today) = releases.copy(tmp_path), releases.dates
    inputs, bundle = releases.inputs(today, settings), releases.bundle(yesterday)
    extract, cut = promote.load_extract(settings, inputs), cuts(today, settings.time).judge
    texts = bundle.manifests["embed_text"]
    shorter = {"text": {**texts.settings["text"], "max_tokens": 9}}
    manifests = {**bundle.manifests, "embed_text": texts.model_copy(update={"settings": shorter})}
    found = promote._champion_vectors(
        inputs, Bundle(yesterday, manifests), extract, cut, settings.time.window_days
    )
    own = load_text(inputs.store, inputs["embed_text"])["audiobook"]
    assert found.audiobook_text.shape == own.shape
    # Cut at nine tokens instead of twelve, nearly every text says something else.
    assert (np.abs(found.audiobook_text - own).max(axis=1) > 1e-3).mean() > 0.5


def test_a_champion_of_music_by_track_is_scored_by_track(releases: Releases, tmp_path: Path):
    """Its artists are tracks; read as artists they would all be unknown, and the champion deaf to music."""
    as_of = releases.dates[0]
    by_artist = releases.copy(tmp_path)
    by_track = releases.settings(tmp_path, music={"unit": "track", "dimensions": 8})
    for task in ("embed_music", "train_two_tower", "evaluate"):
        run_task(task, by_track, as_of)
    its = {task: releases.result(by_track, as_of, task) for task in ("embed_music", "train_two_tower")}
    bundle = Bundle(as_of, {**releases.bundle(as_of).manifests, **its})
    evaluated = releases.result(by_track, as_of, "evaluate")
    store = Store(by_track.store.uri, by_track.store.scratch)
    expected = stored_hits(Inputs(as_of, store, {"evaluate": evaluated}))
    inputs = releases.inputs(as_of, by_artist)
    seen: list[float] = []
    real = promote.make_builder

    def spy(*arguments: Any) -> Any:
        builder = real(*arguments)
        seen.append(float(builder.artist_known.mean()))
        return builder

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(promote, "make_builder", spy)
        np.testing.assert_array_equal(promote._champion_hits(by_artist, inputs, bundle), expected)
    assert seen[0] > 0.5  # nearly all tracks have a vector


def test_settings_of_another_code_make_a_champion_incomparable(
    releases: Releases, capsys: pytest.CaptureFixture[str]
):
    """A release may rename a setting: yesterday's champion must not stop today's promote."""
    settings, (yesterday, today) = releases.settings(), releases.dates
    bundle = releases.bundle(yesterday)
    graph = bundle.manifests["build_graph"]
    old = graph.model_copy(update={"settings": {**graph.settings, "graph": {"best_of": 20}}})
    version = Version("1", yesterday, "aa", 0.5, {"release": "{}"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Bundle, "load", lambda *_: replace(bundle, manifests={**bundle.manifests, "build_graph": old})
        )
        assert promote._difference(settings, releases.inputs(today), version) is None
    assert "champion version 1 cannot be scored on 2026-11-21" in capsys.readouterr().out


def test_a_damaged_file_of_the_candidate_stops_promote(place: Place):
    item_vectors = place.store.open(place.store.versions("refresh", "2026-11-20")[0], "item_vectors.npy")
    content = bytearray(item_vectors.read_bytes())
    content[-1] ^= 1
    item_vectors.unlink()  # a hard link to the other stores' file
    item_vectors.write_bytes(content)
    with pytest.raises(
        Corrupt, match=r"refresh/2026-11-20.*run the task that writes refresh again with --force"
    ):
        place.promote(0)
    assert place.registry.versions() == []


def test_promote_needs_every_task_before_it(place: Place):
    folder = Path(place.settings.store.uri) / "build_index" / "2026-11-20"
    for manifest in folder.glob(f"*/{MANIFEST}"):
        manifest.unlink()
    with pytest.raises(BadSettings, match=r"python -m tasks\.build_index --as-of 2026-11-20"):
        place.promote(0)
