"""`python -m serving`: the service on services.host and serving.port, until it is asked to stop."""

from __future__ import annotations

import logging
import os
import sys

from audiorec.errors import AudiorecError
from audiorec.settings import Settings, load_settings


def serve(settings: Settings) -> None:
    """Answer until SIGTERM or SIGINT."""
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.serving.threads))
    # A pickled model is never loaded, whoever asks MLflow for one.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    import torch
    import uvicorn

    from serving.app import Service, asgi

    torch.set_num_threads(settings.serving.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # httpx logs addresses, and an address may hold an id.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = uvicorn.Config(
        asgi(Service(settings)),
        host=settings.services.host,
        port=settings.serving.port,
        log_config=None,
        access_log=False,  # the gate logs, and logs no path
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        limit_concurrency=2 * settings.serving.max_waiting,
        h11_max_incomplete_event_size=16_384,
    )
    uvicorn.Server(config).run()


def main() -> int:
    """Command line: settings from AUDIOREC_SETTINGS and the environment."""
    try:
        serve(load_settings())
    except AudiorecError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
