"""Serve the local models here: `python -m gateway.local_models`, with SLUICE_LOCAL_MODELS and the like.

Prints one line when it listens. `python -m gateway.local_models load` loads each model and ends: it is made
sure of, and found without the network from then on. What the operator can put right ends either with one
line on stderr and status 1.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gateway.local_models.model import LoadedModel
from gateway.local_models.options import LocalModelsError, LocalModelsOptions
from gateway.local_models.service import LocalModels, create_service
from gateway.observability import make_logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

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


def load(options: LocalModelsOptions) -> None:
    """Load every model, one after the other. Raises LocalModelsError."""
    for name, source in options.models.items():
        model = LoadedModel.load(source)
        print(f"{name}: {source}, {model.context_length} tokens of context", flush=True)  # noqa: T201


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    if list(arguments) not in ([], ["load"]):
        sys.stderr.write("usage: python -m gateway.local_models [load]\n")
        return 2
    try:
        options = LocalModelsOptions.from_environment(os.environ)
        if arguments:
            load(options)
        else:
            serve(options)
    except LocalModelsError as error:
        sys.stderr.write(f"sluice: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
