"""The server of local models beside the stack: a process of the environment that has torch."""

from __future__ import annotations

import os
import secrets
import signal
import time
from typing import TYPE_CHECKING, Self

import httpx

from infra.local import paths
from infra.local.processes import HOST, StackError, free_port, start_child, stop_child, tail
from infra.local.seeding import ServedModels

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable
    from pathlib import Path

PYTHON = paths.REPOSITORY / ".venv" / "local-models" / "bin" / "python"
_PATIENCE_SECONDS = 1800.0
"""A model may have to be fetched first, and be some gigabytes."""
_PAUSE_SECONDS = 0.1


class LocalModelServer:
    """Serves models on 127.0.0.1 until the block ends, with all of them loaded by its beginning.

    `models` is as SLUICE_LOCAL_MODELS has it. Raises StackError where they can't be served, with what is
    lacking. Only for a process's main thread: the server dies with it.
    """

    def __init__(self, models: str, log: Path, *, avoid: Iterable[int] = ()) -> None:
        self._models = models
        self._log = log
        self._port = free_port(avoid=avoid)
        self._key = f"sk-local-models-{secrets.token_hex(16)}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where OpenAI's routes begin."""
        return f"http://{HOST}:{self._port}/v1"

    def seed(self) -> ServedModels:
        """Return what the gateway has to know of them."""
        listed = self._get("/models").json()["data"]
        return ServedModels(self.url, self._key, {model["id"]: model["context_length"] for model in listed})

    def __enter__(self) -> Self:
        if not PYTHON.exists():
            raise StackError(
                "PyTorch and transformers are not installed: `make dev LOCAL_MODELS=…` installs them first"
            )
        self._log.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(paths.FUNCTIONS), str(paths.REPOSITORY)]),
            "SLUICE_LOCAL_MODELS": self._models,
            "SLUICE_LOCAL_MODELS_HOST": HOST,
            "SLUICE_LOCAL_MODELS_PORT": str(self._port),
            "SLUICE_LOCAL_MODELS_KEY": self._key,
            "SLUICE_LOCAL_MODELS_KEY_SHA256": "",
            "SLUICE_LOCAL_MODELS_PRELOAD": "true",
        }
        self._process = start_child(
            [str(PYTHON), "-m", "gateway.local_models"],
            log=self._log,
            on_owner_death=signal.SIGTERM,
            environment=environment,
        )
        try:
            self._wait(self._process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process is not None:
            stop_child(self._process, signal.SIGTERM)
            self._process = None

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                said = tail(self._log).rpartition("sluice: ")[2] or f"see {self._log}"
                raise StackError(f"the local models can't be served: {said}")
            try:
                self._get("/models")
            except httpx.TransportError:
                time.sleep(_PAUSE_SECONDS)
            else:
                return
        raise StackError(f"the local models did not load in {_PATIENCE_SECONDS:.0f} s: see {self._log}")

    def _get(self, path: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {self._key}"}
        with httpx.Client(trust_env=False, timeout=10, headers=headers) as client:
            return client.get(f"{self.url}{path}")
