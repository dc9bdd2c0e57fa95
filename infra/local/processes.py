"""Child processes that end with their owner, the ports they listen on, and the lock on what they share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import threading
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

HOST = "127.0.0.1"
_LOG_BYTES_KEPT = 10 * 1024 * 1024


class StackError(RuntimeError):
    """Something about the local stack that its user can put right; the message says how."""


def port_is_free(port: int) -> bool:
    """Whether a server could listen on `port` now; a bind tells, an answer could be a stranger's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def listening_socket() -> socket.socket:
    """Return a TCP socket for a server, not bound yet.

    Its protocol is named, since asyncio switches Nagle's algorithm off only where it is: else every answer
    that is sent in two parts waits 40 ms for the client's acknowledgement (measured).
    """
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)


def free_port(preferred: int | None = None, avoid: Iterable[int] = ()) -> int:
    """`preferred` if it is free and not in `avoid`, else a port that the kernel says is free."""
    taken = set(avoid)
    if preferred is not None and preferred not in taken and port_is_free(preferred):
        return preferred
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


def start_child(
    command: Sequence[str],
    *,
    log: Path,
    on_owner_death: signal.Signals,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that the terminal's Ctrl-C reaches only its owner.

    On Linux the kernel sends it `on_owner_death` when the thread that started it ends, however that
    happens, so start children from the main thread. Elsewhere a `kill -9` of the owner leaves it running;
    the next start ends it. `prefix` is a setpriv command line to extend, for a change of user.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a child dies with the thread that starts it: start it from the main thread")
        signal_name = on_owner_death.name.removeprefix("SIG")
        command = [*(prefix or [setpriv]), "--pdeathsig", signal_name, "--", *command]
    log.parent.mkdir(parents=True, exist_ok=True)
    too_long = log.exists() and log.stat().st_size > _LOG_BYTES_KEPT
    with log.open("wb" if too_long else "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )


def stop_child(process: subprocess.Popen[bytes], *signals: signal.Signals, patience: float = 10.0) -> None:
    """Send each of `signals` in turn, waiting `patience` seconds after each, then SIGKILL. Idempotent."""
    for each in signals:
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(each)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    if process.poll() is None:
        process.kill()
        process.wait()


def tail(log: Path, characters: int = 1500) -> str:
    """Return the end of a log, for an error message; empty when there is none."""
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-characters:].strip()
    except OSError:
        return ""


class ExclusiveLock:
    """An advisory lock on a file. The kernel frees it when its holder dies, so it can't be left behind."""

    def __init__(self, path: Path, refusal: str) -> None:
        self._path = path
        self._refusal = refusal
        self._file: IO[str] | None = None

    def acquire(self) -> Self:
        """Take the lock or raise StackError with the refusal and the holder's process id."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            raise StackError(self._refusal + (f" (process {holder})" if holder else "")) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        return self

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *_exc: object) -> None:
        self.release()
