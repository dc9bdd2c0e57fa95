"""Price lists over HTTP, on the real PostgREST."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from gateway.schemas.answers.admin import PriceImport
from infra.local.catalogue import read_catalogue
from infra.local.paths import CATALOGUE
from tests.fixtures.management import Management, assert_error, management

if TYPE_CHECKING:
    import httpx

__all__ = ["management"]

HEADER = "model,provider,context_length,input,cached_input,output,source,source_date\n"
ROUTE = "/admin/prices/import"


async def send(
    management: Management, body: str | bytes, *, key: str | None = None, **query: str
) -> httpx.Response:
    return await management.call(
        "POST",
        ROUTE,
        key or management.admin_key,
        content=body.encode() if isinstance(body, str) else body,
        params=query,
        headers={"content-type": "text/csv"},
    )


async def imported(management: Management, body: str | bytes, **query: str) -> dict[str, Any]:
    response = await send(management, body, **query)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    PriceImport.model_validate(told)
    return told


def count(management: Management) -> tuple[Any, ...]:
    return management.query(
        "select (select count(*) from gateway.models), (select count(*) from gateway.offers),"
        " (select count(*) from gateway.prices), (select count(*) from gateway.audit_log)"
    )[0]


def new_name() -> str:
    return f"model-{uuid.uuid4().hex[:8]}"


async def test_dry_run_shows_what_the_import_then_does(management: Management) -> None:
    known = await management.model()
    added = new_name()
    body = (
        HEADER
        + f"{known['name']},openai-compatible,,2,0.2,9,https://example.org,2026-11-21\n"
        + f"{added},Google,1000,1,,3,,\n"
        + f"{added},xai,1000,1,5,3,,\n"
    )
    before = count(management)
    shown = await imported(management, body, dry_run="true")
    assert count(management) == before
    assert shown == {
        "dry_run": True,
        "lines": 3,
        "models_added": [added],
        "offers_added": [{"model": added, "provider": "gemini"}, {"model": added, "provider": "xai"}],
        "prices_changed": [
            {
                "model": known["name"],
                "provider": "openai-compatible",
                "changes": {
                    "cached_input": {"old": None, "new": "0.2"},
                    "output": {"old": "8", "new": "9"},
                },
            }
        ],
        "unchanged": 0,
        "warnings": ["line 4, cached_input: is more than input"],
    }
    assert await imported(management, body, dry_run="false") == {**shown, "dry_run": False}
    again = await imported(management, body)
    assert (again["unchanged"], again["prices_changed"], again["offers_added"]) == (3, [], [])
    listed = await management.ok("GET", f"/admin/prices?model={known['name']}&limit=1")
    (price,) = listed["data"]
    assert (price["output"], price["source"], price["source_date"]) == (
        "9",
        "https://example.org",
        "2026-11-21",
    )
    assert management.value(
        "select count(*) from gateway.audit_log where entity = 'prices' and actor = 'key ' || ("
        " select prefix from gateway.api_keys where 'admin' = any (scopes) order by id desc limit 1)"
        " and (after ->> 'id')::bigint = %s",
        price["id"],
    )


async def test_the_short_form_and_a_byte_order_mark_are_read(management: Management) -> None:
    name = new_name()
    body = f"provider,model,price_per_token\r\nopenai,{name},0.00000015\r\n"
    told = await imported(management, b"\xef\xbb\xbf" + body.encode())
    assert told["models_added"] == [name]
    (price,) = (await management.ok("GET", f"/admin/prices?model={name}"))["data"]
    assert (price["input"], price["output"]) == ("0.15", "0.15")


async def test_an_import_may_be_for_later(management: Management) -> None:
    model = await management.model()
    body = f"{HEADER}{model['name']},openai-compatible,,3,,8,,\n"
    later = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    told = await imported(management, body, effective_from=later.isoformat())
    assert told["prices_changed"][0]["changes"] == {"input": {"old": "2", "new": "3"}}
    versions = (await management.ok("GET", f"/admin/prices?model={model['name']}"))["data"]
    assert [row["input"] for row in versions] == ["3", "2"]
    assert datetime.fromisoformat(versions[0]["effective_from"]) == later


@pytest.mark.parametrize(
    ("lines", "param", "message"),
    [
        ("{name},xai,,1,,2,,\nx,openai,,1.2.3,,2,,\n", "lines.3.input", "line 3, input: must be a decimal"),
        ("{name},xai,,1,,2,,\n,,,\n", "lines.3", "line 3: has 4 fields, not 8"),
        (
            "{name},xai,,1,,2,,\n{name},grok,,1,,2,,\n",
            "lines.3.provider",
            "line 3, provider: names the offer",
        ),
        ("{name},xai,,1,,2,,\nx,nobody,,1,,2,,\n", "lines.3.provider", "line 3, provider: 'nobody' is not"),
        ("{name},xai,,1,,2,,\nx,xai,1k,1,,2,,\n", "lines.3.context_length", "line 3, context_length: must"),
    ],
)
@pytest.mark.parametrize("dry_run", ["true", "false"])
async def test_malformed_line_is_422_and_imports_nothing(
    management: Management, lines: str, param: str, message: str, dry_run: str
) -> None:
    before = count(management)
    body = HEADER + lines.replace("{name}", new_name())
    response = await send(management, body, dry_run=dry_run)
    assert message in assert_error(response, 422, "malformed_price_list", param)
    assert count(management) == before


@pytest.mark.parametrize(
    ("body", "query", "status", "param"),
    [
        (b"", {}, 422, "lines.1"),
        (b'{"model": "x"}', {}, 422, None),
        (b"\xff\xfe\x00", {}, 400, None),
        (b"model,provider,input,output\n\xe9,xai,1,1\n", {}, 400, None),
        (b"model,provider,input,output\nx\x00,xai,1,1\n", {}, 422, "lines.2.model"),
        (b"model,provider,input,output\nx,xai,1,1\n", {"dry_run": "yes"}, 422, "dry_run"),
        (b"model,provider,input,output\nx,xai,1,1\n", {"effective_from": "now"}, 422, "effective_from"),
        (
            b"model,provider,input,output\nx,xai,1,1\n",
            {"effective_from": "2020-01-01T00:00:00Z"},
            422,
            "effective_from",
        ),
        (b"model,provider,input,output\n" + b"x" * (6 * 1024 * 1024), {}, 413, None),
    ],
)
async def test_bad_import_is_refused(
    management: Management, body: bytes, query: dict[str, str], status: int, param: str | None
) -> None:
    before = count(management)
    assert_error(await send(management, body, **query), status, param=param)
    assert count(management) == before


async def test_only_an_admin_imports(management: Management) -> None:
    body = f"{HEADER}{new_name()},xai,,1,,2,,\n"
    customer = management.customer("1", scopes=("chat", "usage", "keys", "billing"))
    before = count(management)
    assert_error(await send(management, body, key=customer.key), 403)
    assert_error(await management.call("POST", ROUTE, None, content=body.encode()), 401)
    assert count(management)[:3] == before[:3]


async def test_the_catalogue_itself_is_imported_and_twice_changes_nothing(management: Management) -> None:
    body = CATALOGUE.read_bytes()
    first = await imported(management, body)
    assert len(first["offers_added"]) == first["lines"] == len(read_catalogue().lines)
    before = count(management)
    second = await imported(management, body)
    assert (second["lines"], second["unchanged"]) == (first["lines"], first["lines"])
    assert count(management) == before


async def test_ten_thousand_lines_are_one_request(management: Management) -> None:
    vendor = uuid.uuid4().hex[:8]
    lines = (
        f"{vendor}/model-{number},xai,128000,1.25,0.125,10,https://example.org,2026-11-21\n"
        for number in range(10_000)
    )
    # the database has 25 s: a bound that only a wrong plan reaches, at some 2 s here
    told = await imported(management, HEADER + "".join(lines))
    assert len(told["offers_added"]) == 10_000
