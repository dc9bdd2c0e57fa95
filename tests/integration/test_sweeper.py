"""The local stack's maintenance thread."""

from __future__ import annotations

import time

from gateway import auth
from infra.local.maintenance import Sweeper
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway

__all__ = ["gateway", "module_gateway"]


def test_hold_that_nobody_settled_is_ended_while_the_stack_runs(gateway: RunningGateway) -> None:
    model = gateway.model("echo")
    customer = gateway.customer("1")
    gateway.call(
        "admit_request",
        p_key_hash=auth.key_hash(customer.key),
        p_request_id="req_" + "0" * 32,
        p_models=[model],
        p_endpoint="chat.completions",
        p_lease_seconds=-1,
        p_input_tokens_bound=100,
    )
    assert gateway.balance(customer)[1] > 0
    deadline = time.monotonic() + 10
    with Sweeper(gateway.settings, interval_seconds=0.05):
        while gateway.balance(customer) != (1, 0) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert gateway.balance(customer) == (1, 0)
    assert gateway.request("req_" + "0" * 32)["state"] == "expired"
