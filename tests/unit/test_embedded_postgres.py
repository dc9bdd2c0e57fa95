"""The embedded server: its data outlives it, and it outlives nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from infra.local.postgres import EmbeddedPostgres
from infra.local.processes import HOST, ExclusiveLock, StackError, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
OWNER = """
import sys, time
from pathlib import Path
from infra.local.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1])).start()
print(server.pid, server.url(), flush=True)
time.sleep(60)
"""


def wait_until_gone(pid: int, patience: float = 10.0) -> None:
    """Wait until a process has ended; one that nobody has reaped yet has no command line any more."""
    deadline = time.monotonic() + patience
    command = Path(f"/proc/{pid}/cmdline")
    while command.exists() and command.read_bytes():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    made = EmbeddedPostgres(tmp_path / "data", password="a:p@ss/w%rd'")
    yield made
    made.stop()


def rows(server: EmbeddedPostgres) -> list[tuple[int]]:
    with psycopg.connect(server.url()) as connection:
        return connection.execute("select n from kept").fetchall()


def test_a_second_start_finds_what_the_first_left(server: EmbeddedPostgres) -> None:
    server.start()
    with psycopg.connect(server.url()) as connection:
        connection.execute("create table kept as select 7 as n")
    server.stop()
    assert server.pid is None
    server.start()
    assert rows(server) == [(7,)]


def test_a_killed_server_comes_back_with_what_was_committed(server: EmbeddedPostgres) -> None:
    server.start()
    with psycopg.connect(server.url()) as connection:
        connection.execute("create table kept as select 7 as n")
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    server.stop()
    server.start()
    assert rows(server) == [(7,)]


def test_a_wrong_password_is_refused(server: EmbeddedPostgres) -> None:
    server.start()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url(password="guess"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word that a parent died is Linux's")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_server_ends_however_its_owner_ends(tmp_path: Path, how: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline().split()[0])
        assert Path(f"/proc/{pid}").exists()
        owner.send_signal(how)
    # at once again, on the same data: the first may still be shutting down
    with EmbeddedPostgres(tmp_path / "data") as second:
        assert second.pid not in {None, pid}
    wait_until_gone(pid)


def test_a_stale_pid_file_of_a_living_stranger_is_no_obstacle(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        # as after a reboot: the number in the file now belongs to another process
        (server.data / "postmaster.pid").write_text(f"{stranger.pid}\n{server.data}\n", encoding="ascii")
        server.start()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} is in use"):
            EmbeddedPostgres(tmp_path / "data", port=port).start()


def test_two_owners_of_one_directory_are_refused(server: EmbeddedPostgres) -> None:
    server.start()
    with pytest.raises(StackError, match=rf"another process runs the database.*process {os.getpid()}"):
        EmbeddedPostgres(server.data).start()
    assert server.pid is not None


def test_another_versions_data_is_refused(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    with pytest.raises(StackError, match="was made by PostgreSQL 16, not 18"):
        EmbeddedPostgres(server.data, version=18).start()


def test_postgres_18_can_be_chosen(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "data", version=18)
    with server, psycopg.connect(server.url()) as connection:
        assert connection.info.server_version // 10000 == 18


def test_a_first_start_that_was_interrupted_leaves_nothing_in_the_way(server: EmbeddedPostgres) -> None:
    half_made = server.data.with_name("data.new")
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("16\n", encoding="ascii")
    server.start()
    assert not half_made.exists()


def test_a_directory_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter.txt").write_text("mine", encoding="ascii")
    with pytest.raises(StackError, match="is not a PostgreSQL data directory"):
        EmbeddedPostgres(tmp_path / "data").start()
    assert (tmp_path / "data" / "letter.txt").exists()


def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="shared_buffers"):
        EmbeddedPostgres(tmp_path / "data", settings={"shared_buffers": "none"}).start()


def test_a_lock_is_free_once_its_holder_let_go(tmp_path: Path) -> None:
    lock = ExclusiveLock(tmp_path / "lock", "taken")
    with lock, pytest.raises(StackError, match=f"taken .process {os.getpid()}"):
        ExclusiveLock(tmp_path / "lock", "taken").acquire()
    with ExclusiveLock(tmp_path / "lock", "taken"):
        pass


def test_a_free_port_is_the_preferred_one_unless_it_is_taken() -> None:
    port = free_port()
    assert free_port(port) == port
    assert free_port(port, avoid=[port]) != port
    with socket.socket() as taken:
        taken.bind((HOST, port))
        taken.listen()
        assert free_port(port) != port
