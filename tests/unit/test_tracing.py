"""X-Ray subsegments of outgoing calls, as the daemon gets them."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from gateway.runtime.process import Process
from gateway.runtime.tracing import TracedTransport, Tracer, function_of, host_of
from gateway.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

SAMPLED = "Root=1-581cf771-a006649127e371903a2de979;Parent=70de5b6f19ff9a0a;Sampled=1;Lineage=a:0"


class Daemon:
    """The socket of an X-Ray daemon."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.2)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.socket.getsockname()[1]}"

    def documents(self) -> list[dict[str, Any]]:
        """What has arrived; the loopback delivers before `sendto` returns."""
        self.socket.setblocking(False)
        found: list[dict[str, Any]] = []
        while True:
            try:
                header, _, document = self.socket.recv(65536).partition(b"\n")
            except BlockingIOError:
                return found
            assert json.loads(header) == {"format": "json", "version": 1}
            found.append(json.loads(document))


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.socket.close()


@pytest.fixture
def tracer(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracer]:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", SAMPLED)
    tracer = Tracer(daemon.address)
    yield tracer
    tracer.close()  # its transport has, too


class Parts(httpx.AsyncByteStream):
    def __init__(self, *parts: bytes | Exception) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part


def client(
    tracer: Tracer,
    answer: Callable[[httpx.Request], Any],
    name: Callable[[httpx.Request], str] = host_of,
) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=TracedTransport(httpx.MockTransport(answer), tracer, name))


async def test_a_call_is_a_subsegment_from_its_start_until_its_answer_is_closed(
    tracer: Tracer, daemon: Daemon
) -> None:
    async with client(tracer, lambda _: httpx.Response(200, stream=Parts(b"a", b"b"))) as http:
        url = "https://user:pass@api.example.org/v1/chat?key=secret"
        async with http.stream("POST", url, content=b"{}") as response:
            assert daemon.documents() == []
            assert await response.aread() == b"ab"
    [document] = daemon.documents()
    assert document.pop("end_time") >= document.pop("start_time")
    assert len(bytes.fromhex(document.pop("id"))) == 8
    assert document.pop("annotations")["seconds_to_head"] >= 0
    assert document == {
        "type": "subsegment",
        "name": "api.example.org",
        "trace_id": "1-581cf771-a006649127e371903a2de979",
        "parent_id": "70de5b6f19ff9a0a",
        "namespace": "remote",
        "http": {
            "request": {"method": "POST", "url": "https://api.example.org/v1/chat"},
            "response": {"status": 200},
        },
        "error": False,
        "fault": False,
        "throttle": False,
    }


@pytest.mark.parametrize(
    ("status", "flags"),
    [(404, {"error"}), (429, {"error", "throttle"}), (500, {"fault"}), (503, {"fault"})],
)
async def test_a_status_says_whose_fault_it_was(
    tracer: Tracer, daemon: Daemon, status: int, flags: set[str]
) -> None:
    async with client(tracer, lambda _: httpx.Response(status, stream=Parts())) as http:
        await http.get("https://db.example.org/rest/v1/rpc/admit_request")
    [document] = daemon.documents()
    assert {name for name in ("error", "throttle", "fault") if document[name]} == flags


async def test_a_call_that_breaks_is_a_fault_before_and_in_its_body(tracer: Tracer, daemon: Daemon) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/refused":
            raise httpx.ConnectError("no")
        return httpx.Response(200, stream=Parts(b"a", httpx.ReadError("cut")))

    async with client(tracer, answer) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("https://api.example.org/refused")
        with pytest.raises(httpx.ReadError):
            await http.get("https://api.example.org/cut")
    documents = daemon.documents()
    assert [document["cause"]["exceptions"][0]["type"] for document in documents] == [
        "ConnectError",
        "ReadError",
    ]
    assert all(document["fault"] for document in documents)


async def test_calls_that_overlap_keep_their_own_times(tracer: Tracer, daemon: Daemon) -> None:
    gates = {"/first": asyncio.Event(), "/second": asyncio.Event()}

    async def answer(request: httpx.Request) -> httpx.Response:
        await gates[request.url.path].wait()
        return httpx.Response(200, stream=Parts(b"x"))

    async with client(tracer, answer, function_of) as http:
        first = asyncio.create_task(http.get("https://db.example.org/first"))
        await asyncio.sleep(0)
        second = asyncio.create_task(http.get("https://db.example.org/second"))
        gates["/first"].set()
        await first
        gates["/second"].set()
        await second
    documents = daemon.documents()
    assert [document["name"] for document in documents] == ["first", "second"]
    assert all(document["parent_id"] == "70de5b6f19ff9a0a" for document in documents)


@pytest.mark.parametrize(
    "header", [None, "", "Root=1-a;Parent=b;Sampled=0", "Root=1-a;Sampled=1", "Parent=b;Sampled=1", "junk"]
)
async def test_what_is_not_sampled_is_not_sent(
    tracer: Tracer, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, header: str | None
) -> None:
    if header is None:
        monkeypatch.delenv("_X_AMZN_TRACE_ID")
    else:
        monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    async with client(tracer, lambda _: httpx.Response(200, stream=Parts(b"x"))) as http:
        assert (await http.get("https://api.example.org")).content == b"x"
    assert daemon.documents() == []


async def test_a_daemon_that_is_away_harms_no_call(tracer: Tracer, daemon: Daemon) -> None:
    daemon.socket.close()
    async with client(tracer, lambda _: httpx.Response(200, stream=Parts(b"x"))) as http:
        for _ in range(3):
            assert (await http.get("https://api.example.org")).content == b"x"


def settings(**variables: str) -> Settings:
    return Settings.from_environment(
        {"SUPABASE_URL": "https://db.example.org", "SUPABASE_KEY": "k", **variables}
    )


async def test_a_process_traces_both_its_clients_where_there_is_a_daemon(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", SAMPLED)
    port = daemon.address.rpartition(":")[2]
    address = f"tcp:127.0.0.1:1 udp:127.0.0.1:{port}"
    process = Process.start(settings(AWS_XRAY_DAEMON_ADDRESS=address))
    for http in (process.providers_http, process.database_http):
        with pytest.raises(httpx.ConnectError):
            await http.get("http://127.0.0.1:1/rest/v1/rpc/settle_request")
    await process.aclose()
    assert [document["name"] for document in daemon.documents()] == ["127.0.0.1", "settle_request"]


@pytest.mark.parametrize("address", ["nowhere", "tcp:127.0.0.1:1", "a b:1", ":1"])
def test_a_bad_address_is_a_clear_error(address: str) -> None:
    with pytest.raises(SettingsError, match="AWS_XRAY_DAEMON_ADDRESS must be host:port"):
        settings(AWS_XRAY_DAEMON_ADDRESS=address)
