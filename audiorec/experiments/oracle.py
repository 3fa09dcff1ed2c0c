"""The oracle's ranks on a simulated source: the ceiling of the hold-out, which only who made the tables can know.

`python -m audiorec.experiments.oracle --as-of ...` runs it alone. It is no recommender: it reads the truth that lies
beside simulated tables (`audiorec generate --preset paper`), and what it knows of a day no table shows.
"""

from __future__ import annotations

from audiorec.catalogue import load_extract
from audiorec.cuts import cuts
from audiorec.errors import BadSettings
from audiorec.experiments.protocol import coverage_table, judge, make_hold_out, ranks_table
from audiorec.settings import Settings
from audiorec.simulator.oracle import Oracle
from audiorec.simulator.truth import TRUTH_MARKER, truth_of
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output

ORACLE = "oracle"


def has_truth(uri: str) -> bool:
    """Whether a truth lies beside the source tables, so that the oracle can be asked."""
    return "://" not in uri and (truth_of(uri) / TRUTH_MARKER).is_file()


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `ranks.parquet` and `coverage.csv`, as `rivals` does, of the one model `oracle`.

    Raises:
        BadSettings: users go by pseudonyms, which the truth does not know.
    """
    if settings.privacy.user_ids != "as_given":
        raise BadSettings(
            'the oracle knows users by the ids of the tables, but privacy.user_ids is "pseudonyms"; '
            'give settings with privacy.user_ids = "as_given" (simulated users need no pseudonym)'
        )
    extract, all_cuts = load_extract(settings, inputs), cuts(inputs.as_of, settings.time)
    hold_out = make_hold_out(extract, all_cuts, settings.evaluation)
    users = extract.users["user_id"].to_numpy(object)[hold_out.users]
    oracle = Oracle.load(settings.source.uri, list(users))
    titles = extract.audiobooks["audiobook_id"].tolist()
    judged = judge(
        hold_out,
        lambda rows: oracle.scores(list(users[rows]), titles, all_cuts.split, settings.time.holdout_days),
        settings.evaluation.depth,
    )
    judgements = {ORACLE: judged}
    ranks_table(extract, hold_out, judgements).to_parquet(out.path("ranks.parquet"), index=False)
    coverage_table(hold_out, judgements).to_csv(out.path("coverage.csv"), index=False)
    return out.commit(counts={"users": len(hold_out.users)}, simulator=oracle.simulator_hash)


if __name__ == "__main__":
    from audiorec.runner import main

    main("oracle")
