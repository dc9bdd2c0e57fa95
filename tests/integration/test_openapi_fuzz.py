"""Requests made of the document, good and bad, to every route: no 5xx, and no answer that it doesn't know.

The same requests every time. Objects of the paths are half of the time some that there are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import (
    GenerationConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.auth import key_hash, key_prefix, new_key
from tests.fixtures.contract import contract
from tests.fixtures.gateway import RunningGateway, gateway, serve
from tests.fixtures.stripe_server import StripeServer, stripe_server_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from schemathesis import Case

    from infra.local.postgrest import PostgRest
    from tests.fixtures.database import Database
    from tests.fixtures.simulator import Simulator

    Test = Callable[[Any, Any], None]

__all__ = ["gateway", "stripe_server_process"]


@pytest.fixture(scope="module")
def module_gateway(
    module_database: Database,
    module_postgrest: PostgRest,
    simulator_server: Simulator,
    stripe_server_process: StripeServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningGateway]:
    """One that sells credits: no route has an excuse for a server error."""
    spool = tmp_path_factory.mktemp("spool")
    sells = stripe_server_process.settings
    with serve(module_database, module_postgrest, simulator_server, spool, **sells) as made:
        yield made


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    response_schema_conformance,
    content_type_conformance,
    response_headers_conformance,
]
EXAMPLES = {"admin": 24, "customer": 8, "nobody": 3}
MODEL = "gpt-4o-mini"
"""As in the document's examples, which are sent, too."""
SCOPES = ["chat", "usage", "keys", "billing"]


def _schema(examples: int) -> Any:
    generation = GenerationConfig(deterministic=True, max_examples=examples, with_security_parameters=False)
    phases = PhasesConfig.from_dict({"coverage": {"enabled": False}, "stateful": {"enabled": False}})
    project = ProjectConfig(generation=generation, phases=phases)
    config = SchemathesisConfig(projects=ProjectsConfig(default=project))
    return schemathesis.openapi.from_dict(dict(contract().document), config=config)


@dataclass(slots=True)
class Fuzz:
    """A gateway with a customer, a model, a service and a request, to be called by anybody."""

    gateway: RunningGateway
    session: requests.Session
    ids: dict[str, Any]
    statuses: Counter[str]
    _customers: dict[str, int] = field(default_factory=dict)

    def key(self, caller: str, operation: str) -> str | None:
        """A fresh key: what is fuzzed may have revoked the one before, and erased its customer."""
        if caller == "nobody":
            return None
        if caller == "customer" and operation not in self._customers:
            self._customers[operation] = self.gateway.customer("10").id
        key = new_key()
        self.gateway.call(
            "create_key",
            p_customer_id=None if caller == "admin" else self._customers[operation],
            p_name=caller,
            p_prefix=key_prefix(key),
            p_secret_hash=key_hash(key),
            p_scopes=["admin"] if caller == "admin" else SCOPES,
        )
        return key


@pytest.fixture(scope="module")
def fuzz(module_gateway: RunningGateway) -> Iterator[Fuzz]:
    # Made first: what is fuzzed is deleted, and small ids are what a fuzzer tries.
    victim, service = module_gateway.customer("1000"), module_gateway.service()
    module_gateway.model("echo", name=MODEL)
    customer = module_gateway.customer("1000")
    with requests.Session() as session:
        session.trust_env = False
        made = Fuzz(module_gateway, session, {}, Counter())
        answer = session.post(
            f"{module_gateway.url}/v1/chat/completions",
            json={"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]},
            headers={"x-api-key": customer.key},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        made.ids = {
            "customers": victim.id,
            "keys": victim.key_id,
            "services": service,
            "requests": answer.headers["x-request-id"],
            "models": MODEL,
        }
        yield made


def _send(fuzz: Fuzz, case: Case[Any], caller: str) -> None:
    kind = next((kind for kind in fuzz.ids if f"/{kind}/{{" in case.operation.path), None)
    # An object that there is takes the route further; which of the two is decided by the case itself.
    if kind is not None and len(case.path_parameters) == 1 and len(repr(case.as_curl_command())) % 2:
        [name] = case.path_parameters
        case.path_parameters[name] = fuzz.ids[kind]
    key = fuzz.key(caller, case.operation.label)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    response = case.call(base_url=fuzz.gateway.url, session=fuzz.session, headers=headers)
    fuzz.statuses[f"{case.operation.label} {response.status_code}"] += 1
    case.validate_response(response, checks=CHECKS)
    if caller == "nobody" and case.operation.definition.raw["security"]:
        assert response.status_code in {400, 401}, response.text


def _fuzzed(examples: int) -> Callable[[Test], Test]:
    """Run a test with requests to every route, at most so many to each."""
    quietly = settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )

    def decorate(test: Test) -> Test:
        fuzzed: Test = _schema(examples).parametrize()(quietly(test))
        return fuzzed

    return decorate


@_fuzzed(EXAMPLES["nobody"])
def test_a_strangers_requests_are_answered_as_documented(fuzz: Fuzz, case: Case[Any]) -> None:
    _send(fuzz, case, "nobody")


@_fuzzed(EXAMPLES["customer"])
def test_a_customers_requests_are_answered_as_documented(fuzz: Fuzz, case: Case[Any]) -> None:
    _send(fuzz, case, "customer")


# The last: they change the settings and delete what the others call.
@_fuzzed(EXAMPLES["admin"])
def test_an_admins_requests_are_answered_as_documented(fuzz: Fuzz, case: Case[Any]) -> None:
    _send(fuzz, case, "admin")


def test_the_routes_were_reached_and_the_books_add_up(fuzz: Fuzz) -> None:
    """Fuzzing that meets refusals alone would prove little."""
    reached = {name.rpartition(" ")[0] for name in fuzz.statuses if name.rpartition(" ")[2].startswith("2")}
    assert {
        "POST /v1/chat/completions",
        "POST /generate",
        "POST /v1/keys",
        "PATCH /admin/settings",
    } <= reached
    assert fuzz.gateway.books_add_up()
