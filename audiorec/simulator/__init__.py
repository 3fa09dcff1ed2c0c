"""Seeded generator of sample source tables: music, podcasts and a new, sparse audiobook catalogue.

Users have latent tastes that the three domains share; titles are drawn by taste, popularity, novelty and
language. It knows nothing of the recommender: no co-listening graph and no embedding in it.

    from audiorec.simulator import preset, write_source_tables
    summary = write_source_tables(preset("sample", seed=1), "tables")
"""

from audiorec.simulator.config import PRESETS, DirtRates, SignalRates, SimulatorConfig, preset
from audiorec.simulator.tables import EVENT_TABLES, SCHEMAS, GeneratedSummary, write_source_tables

__all__ = [
    "EVENT_TABLES",
    "PRESETS",
    "SCHEMAS",
    "DirtRates",
    "GeneratedSummary",
    "SignalRates",
    "SimulatorConfig",
    "preset",
    "write_source_tables",
]
