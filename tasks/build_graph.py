"""Build the co-listening graph (audiobook-audiobook, audiobook-podcast, podcast-podcast) at every cut.

A graph holds only events of its cut's window: one that held a target's own day would carry the answer in its
edges. Titles that nobody streamed stay in as isolated nodes; they get embeddings from titles that read alike.
"""

from __future__ import annotations

import numpy as np

from audiorec.catalogue import load_extract
from audiorec.colistening import cut_relations
from audiorec.cuts import cuts
from audiorec.progress import Progress
from audiorec.settings import Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from expectations.graph import check_graph


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `{cut}.{relation}.indptr.npy`, `.indices.npy` and `.users.npy` for each cut and direction."""
    extract = load_extract(settings, inputs)
    all_cuts = cuts(inputs.as_of, settings.time).all_cuts
    counts: dict[str, int] = {"audiobooks": len(extract.audiobooks), "podcasts": len(extract.podcasts)}
    progress = Progress(len(all_cuts), "cuts")
    for cut in all_cuts:
        relations = cut_relations(extract, cut, settings.graph)
        for name, edges in relations.items():
            np.save(out.path(f"{cut.name}.{name}.indptr.npy"), edges.indptr, allow_pickle=False)
            np.save(out.path(f"{cut.name}.{name}.indices.npy"), edges.indices, allow_pickle=False)
            np.save(out.path(f"{cut.name}.{name}.users.npy"), edges.users, allow_pickle=False)
            if name != "podcast_audiobook":
                both_ways = 2 if name != "audiobook_podcast" else 1
                counts[f"{cut.name}.{name}"] = len(edges.indices) // both_ways
        for warning in check_graph(cut.name, relations):
            out.note(f"warning: {warning}")
        progress.advance(note=cut.name)
    return out.commit(counts=counts)


if __name__ == "__main__":
    from audiorec.runner import main

    main("build_graph")
