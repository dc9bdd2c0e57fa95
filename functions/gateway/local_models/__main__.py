"""Serve the local models here: `python -m gateway.local_models`, with SLUICE_LOCAL_MODELS and the like.

Prints one line when it listens. What the operator can put right ends it with one line on stderr and status 1.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gateway.local_models.options import LocalModelsError, LocalModelsOptions
from gateway.local_models.service import LocalModels, create_service
from gateway.observability import make_logger

if TYPE_CHECKING:
    import socket

_GRACE_SECONDS = 2


def serve(options: LocalModelsOptions) -> None:
    """Serve until a signal. Raises LocalModelsError where a model is to be preloaded and can't be."""
    try:
        import uvicorn  # noqa: PLC0415 - Lambda has none
    except ImportError as error:
        raise LocalModelsError("uvicorn is not installed here: `make .venv/.local-models` does it") from error

    class Server(uvicorn.Server):
        """Says when it listens."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"Local models on http://{options.host}:{options.port}/v1", flush=True)  # noqa: T201

    models = LocalModels(options)
    try:
        if options.preload:
            models.preload()
        app = create_service(models, make_logger(service="sluice-local-models"))
        config = uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            lifespan="on",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        Server(config).run()
    finally:
        models.close()


def main() -> int:
    """Run the server; return the exit status."""
    try:
        serve(LocalModelsOptions.from_environment(os.environ))
    except LocalModelsError as error:
        sys.stderr.write(f"sluice: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
