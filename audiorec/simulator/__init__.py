"""Seeded generator of sample source tables: music, podcasts and a new, sparse audiobook catalogue.

Users have latent tastes that the three domains share; titles are drawn by taste, popularity, novelty and
language. It knows nothing of the recommender: no co-listening graph and no embedding in it.

    from audiorec.simulator import preset, write_source_tables
    summary = write_source_tables(preset("sample", seed=1), "tables")

`audiorec.simulator.oracle` scores titles by the true preferences behind the preset `paper`.
"""

from audiorec.simulator.config import (
    PRESETS,
    DirtRates,
    LeadingSignals,
    SignalRates,
    SimulatorConfig,
    preset,
    sized,
)
from audiorec.simulator.frozen import simulator_hash
from audiorec.simulator.tables import EVENT_TABLES, SCHEMAS, GeneratedSummary, write_source_tables

__all__ = [
    "EVENT_TABLES",
    "PRESETS",
    "SCHEMAS",
    "DirtRates",
    "GeneratedSummary",
    "LeadingSignals",
    "SignalRates",
    "SimulatorConfig",
    "preset",
    "simulator_hash",
    "sized",
    "write_source_tables",
]
