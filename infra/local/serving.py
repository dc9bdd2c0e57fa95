"""Serve an ASGI app on this machine: in a thread, for the simulator and for tests."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Literal, Self

import uvicorn

from infra.local.processes import HOST, StackError, listening_socket

if TYPE_CHECKING:
    from starlette.types import ASGIApp

KEEP_ALIVE_SECONDS = 120
"""For how long an idle connection is kept: longer than by clients, which are to be the first to close it.

A call that is sent at the moment at which the server closes is lost, and can't be sent again: it may have
been taken. httpx and the SDKs on it keep one for 5 seconds, as uvicorn does by default; aiohttp for 15, Go
for 90.
"""
_GRACE_SECONDS = 2


class _Server(uvicorn.Server):
    """A uvicorn server that tells another thread when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


class ThreadedServer:
    """uvicorn in a daemon thread on 127.0.0.1; `port` 0 takes a free one. Stop takes two seconds at most."""

    def __init__(self, app: ASGIApp, *, port: int = 0, lifespan: bool = False) -> None:
        self.port = port
        self._lifespan: Literal["on", "off"] = "on" if lifespan else "off"
        self._app = app
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def start(self, patience: float = 10.0) -> Self:
        """Listen; StackError when the port is taken or the server does not come up."""
        listener = listening_socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, self.port))
        except OSError as error:
            listener.close()
            raise StackError(f"port {self.port} is in use") from error
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            lifespan=self._lifespan,
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="asgi-server", daemon=True
        )
        self._thread.start()
        if not self._server.listens.wait(patience):
            self.stop()
            raise StackError(f"the server on port {self.port} did not start")
        return self

    def stop(self) -> None:
        """Stop listening, give open requests two seconds, end. Idempotent."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_GRACE_SECONDS + 5)
            if self._thread.is_alive():
                raise RuntimeError("the server's thread did not end")
        self._server = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()
