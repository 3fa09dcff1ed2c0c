"""`python -m serving`: the service on services.host and services.serving_port, until it is asked to stop."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from audiorec.errors import AudiorecError
from audiorec.settings import Settings, load_settings
from serving.app import Service, asgi

if TYPE_CHECKING:
    import uvicorn


def server(service: Service, host: str, port: int) -> uvicorn.Server:
    """A server of a service, not yet started."""
    import uvicorn

    config = uvicorn.Config(
        asgi(service),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        limit_concurrency=2 * service.settings.serving.max_waiting,
    )
    # Its lines hold paths, and these hold ids; the gate writes lines of its own. `access_log=False` would only take
    # the logger's handlers away, which any other library's set-up of logging gives back.
    logging.getLogger("uvicorn.access").disabled = True
    return uvicorn.Server(config)


def serve(settings: Settings) -> None:
    """Answer until SIGTERM or SIGINT."""
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.serving.threads))
    # A pickled model is never loaded, whoever asks MLflow for one.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(settings.serving.threads)
    # BLAS was loaded with all cores; two threads that wait for each other on busy cores take milliseconds for a tower.
    threadpool_limits(settings.serving.threads, "blas")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # httpx logs addresses, and an address may hold an id.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    server(Service(settings), settings.services.host, settings.services.serving_port).run()


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
