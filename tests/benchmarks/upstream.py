"""nginx as the provider: the fixed answers, as fast as a file can be served."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import time
from typing import TYPE_CHECKING, Self

from infra.local.processes import HOST, StackError, free_port, start_child, stop_child, tail
from tests.benchmarks import fixed_answer

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

PLAIN = "/plain/v1"
STREAM = "/stream/v1"
PATH = "/chat/completions"
# Debian keeps it where a plain user's PATH may not look.
_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
_START_SECONDS = 10.0

# A POST for a file is 405 to nginx, which this turns into the file. Limits on the life of a connection are
# lifted: a reconnect in the midst of a run would be measured.
_CONFIGURATION = """\
worker_processes 1;
daemon off;
{user}
pid {directory}/nginx.pid;
error_log {directory}/nginx.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_buffer_size 64k;
    open_file_cache max=16;
    sendfile on;
    tcp_nodelay on;
    server {{
        listen {host}:{port} backlog=1024;
        root {directory}/content;
        error_page 405 =200 $uri;
        location {plain} {{ default_type application/json; }}
        location {stream} {{ default_type text/event-stream; }}
    }}
}}
"""


def find_nginx() -> str | None:
    """Return nginx's path; None where it is not installed."""
    return shutil.which("nginx", path=_SEARCH)


class Upstream:
    """nginx with one worker on a free port of 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        for prefix, content in ((PLAIN, fixed_answer.completion()), (STREAM, fixed_answer.event_stream())):
            file = self._directory / "content" / (prefix + PATH).lstrip("/")
            file.parent.mkdir(parents=True)
            file.write_bytes(content)
        account = pwd.getpwuid(os.geteuid()).pw_name
        configuration = self._directory / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                # As root its worker would change to an account that can't reach our directory.
                user=f"user {account};" if os.geteuid() == 0 else "",
                directory=self._directory,
                host=HOST,
                port=self.port,
                plain=PLAIN,
                stream=STREAM,
            ),
            encoding="utf-8",
        )
        program = find_nginx()
        if program is None:
            raise StackError("nginx is not installed")
        log = self._directory / "nginx.log"
        self._process = start_child(
            [program, "-c", str(configuration), "-e", str(log)], log=log, on_owner_death=signal.SIGTERM
        )
        deadline = time.monotonic() + _START_SECONDS
        while not (self._directory / "nginx.pid").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise StackError(f"nginx did not start:\n{tail(log)}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process is not None:
            stop_child(self._process, signal.SIGTERM, patience=5)
            self._process = None
