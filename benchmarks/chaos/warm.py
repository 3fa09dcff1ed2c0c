"""Imported once by the server that forks tasks: what every task imports, and the code's fingerprints."""

from __future__ import annotations

from importlib import import_module

from audiorec.chain import CHAIN
from audiorec.fingerprint import code_parts

for _spec in CHAIN.values():
    import_module(_spec.module)
    code_parts(_spec.module)
for _name in (
    "duckdb",
    "faiss",
    "great_expectations",
    "matplotlib.pyplot",
    "mlflow",
    "sentence_transformers",
    "torch_geometric",
):
    import_module(_name)
