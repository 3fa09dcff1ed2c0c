"""The service's own process: how many threads it computes with."""

from __future__ import annotations

import json
import subprocess
import sys

_ASK = """
import json
import serving.__main__ as main
from audiorec.settings import load_settings

main.server = lambda *_: type("Server", (), {"run": lambda self: None})()
main.Service = lambda settings: None
main.serve(load_settings())
import torch
from threadpoolctl import threadpool_info
blas = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
print(json.dumps({"blas": blas, "torch": torch.get_num_threads()}))
"""


def test_products_use_as_many_threads_as_the_setting_says():
    """numpy's own too, which is loaded with all cores before the setting is read."""
    ended = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["torch"] == 1
    assert found["blas"] and set(found["blas"]) == {1}
