"""The commands' calls: pages, errors in one line, and whose key goes where."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from infra.local.state import StackState
from infra.operator.api import Api, Connection, OperatorError, RefusedError
from infra.operator.prices import _batches
from infra.operator.tables import show, sparkline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def api(answer: Callable[[httpx.Request], httpx.Response]) -> Api:
    connection = Connection("https://gateway.example", "sk_admin")
    return Api(connection, transport=httpx.MockTransport(answer))


def test_rows_are_read_page_after_page() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params.get("cursor", ""))
        assert request.headers["authorization"] == "Bearer sk_admin"
        start = int(asked[-1] or 0)
        return httpx.Response(
            200, json={"data": [start, start + 1], "next_cursor": str(start + 2) if start < 4 else None}
        )

    with api(answer) as client:
        assert list(client.rows("/v1/keys")) == [0, 1, 2, 3, 4, 5]
    assert asked == ["", "2", "4"]


def test_no_more_rows_are_asked_for_than_are_wanted() -> None:
    sizes: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sizes.append(request.url.params["limit"])
        return httpx.Response(200, json={"data": [0] * int(sizes[-1]), "next_cursor": "1"})

    with api(answer) as client:
        assert len(list(client.rows("/admin/prices", most=250))) == 250
    assert sizes == ["200", "50"]


def test_a_refusal_is_one_line_with_the_field() -> None:
    error = {"message": "Must be positive.", "type": "x", "param": "credits", "code": "invalid"}
    with (
        api(lambda _: httpx.Response(422, json={"error": error})) as client,
        pytest.raises(RefusedError, match=r"^Must be positive\. \(credits\)$") as caught,
    ):
        client.post("/admin/add_credits", {})
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "invalid", "credits")


@pytest.mark.parametrize(
    "response", [httpx.Response(502, text="<html>"), httpx.Response(404, json=["no"]), httpx.Response(302)]
)
def test_a_stranger_at_the_url_is_told(response: httpx.Response) -> None:
    with api(lambda _: response) as client, pytest.raises(OperatorError, match="not as this gateway does"):
        client.get("/health")


def test_no_answer_is_told_with_the_url() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with (
        api(refuse) as client,
        pytest.raises(OperatorError, match=r"https://gateway\.example does not answer"),
    ):
        client.get("/health")


def test_the_local_admin_key_never_goes_to_another_host(tmp_path: Path) -> None:
    state = StackState.create()
    state.write(tmp_path)
    local = {"DATA_DIR": str(tmp_path)}
    assert Connection.from_environment(local) == Connection("http://127.0.0.1:8000", state.admin_key)
    with pytest.raises(OperatorError, match="SLUICE_ADMIN_KEY"):
        Connection.from_environment({**local, "SLUICE_URL": "https://gateway.example"})
    assert state.admin_key not in repr(Connection.from_environment(local))


def test_without_anything_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="make dev"):
        Connection.from_environment({"DATA_DIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([0, 0], "  "), ([0, 1, 2, 4, 8], " ▂▃▅█"), ([5], "█"), ([0.001, 1000], "▁█")],
)
def test_sparkline(values: list[float], line: str) -> None:
    assert sparkline(values) == line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.25, "0.25"),
        (Decimal("2E-8"), "0.00000002"),
        (["a", "b"], "a, b"),
        ("x", "x"),
    ],
)
def test_show(value: Any, text: str) -> None:
    assert show(value) == text


def test_a_file_is_cut_between_models_and_every_part_knows_its_lines() -> None:
    lines = [f"model-{number // 3},p{number % 3},{number}" for number in range(900)]
    parts = list(_batches("\n".join(["model,provider,input", *lines]) + "\n"))
    assert sum(size for _, _, size in parts) == 900
    seen: list[str] = []
    for text, before, _ in parts:
        header, *rows = text.splitlines()
        assert header == "model,provider,input"
        # line n of a part is line n + before of the file
        assert rows[0] == lines[before]
        seen += rows
    assert seen == lines
    firsts = [{row.split(",")[0] for row in text.splitlines()[1:]} for text, _, _ in parts]
    assert not any(one & other for one, other in itertools.pairwise(firsts))
