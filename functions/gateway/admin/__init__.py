"""The operator's routes: customers and their money, limits, services, the catalogue, the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.admin.catalogue import Catalogue
from gateway.admin.customers import Customers
from gateway.admin.monitor import Monitor
from gateway.admin.price_import import PriceImport
from gateway.admin.services import Services
from gateway.admin.system import System
from gateway.admin.webhooks import Webhooks
from gateway.http import Operation
from gateway.principals import ADMIN, authorized
from gateway.schemas.admin import (
    AddCreditsRequest,
    ChangeSettingsRequest,
    CreateCustomerRequest,
    CreateModelRequest,
    CreatePriceRequest,
    CreateServiceRequest,
    CreateUserRequest,
    SetLimitsRequest,
    UpdateCustomerRequest,
    UpdateModelRequest,
    UpdateServiceRequest,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from gateway.principals import AuthorizedEndpoint
    from gateway.runtime.process import Process


def operations(process: Process) -> Sequence[Operation]:
    """Return the operator's routes."""
    customers, services = Customers(process), Services(process)
    catalogue, system = Catalogue(process), System(process)
    monitor, webhooks = Monitor(process), Webhooks(process)

    def route(
        method: str,
        path: str,
        endpoint: AuthorizedEndpoint,
        summary: str,
        body: type[BaseModel] | None = None,
        *,
        status: int = 200,
    ) -> Operation:
        return Operation(
            method,
            path,
            authorized(process, endpoint, ADMIN),
            summary,
            scope=ADMIN,
            request_model=body,
            status=status,
            tags=("admin",),
        )

    return (
        route("POST", "/customers", customers.create, "Add a customer", CreateCustomerRequest, status=201),
        route("GET", "/admin/customers", customers.list, "List customers"),
        route("GET", "/admin/customers/{id}", customers.read, "Read a customer"),
        route("PATCH", "/admin/customers/{id}", customers.update, "Change a customer", UpdateCustomerRequest),
        route("DELETE", "/admin/customers/{id}", customers.erase, "Erase a person"),
        route(
            "POST",
            "/admin/create_user",
            customers.create_user,
            "Add a customer with a key and credits",
            CreateUserRequest,
            status=201,
        ),
        route("POST", "/admin/add_credits", customers.add_credits, "Add credits", AddCreditsRequest),
        route("GET", "/admin/monitor", monitor.read, "Read the whole system's figures"),
        route("GET", "/admin/top_customers", monitor.top_customers, "List who was charged the most"),
        route("GET", "/admin/balance", customers.balances, "List balances"),
        route("POST", "/admin/limit", customers.limit, "Set limits", SetLimitsRequest),
        route("GET", "/admin/providers", services.providers, "List the providers that are known"),
        route("GET", "/admin/services", services.list, "List services"),
        route("POST", "/admin/services", services.create, "Add a service", CreateServiceRequest, status=201),
        route("GET", "/admin/services/{id}", services.read, "Read a service"),
        route("PATCH", "/admin/services/{id}", services.update, "Change a service", UpdateServiceRequest),
        route("DELETE", "/admin/services/{id}", services.delete, "Delete a service"),
        route("POST", "/admin/services/{id}/test", services.test, "Test a service"),
        route("GET", "/admin/models", catalogue.list_models, "List the catalogue"),
        route("POST", "/admin/models", catalogue.create_model, "Add a model", CreateModelRequest, status=201),
        route("GET", "/admin/models/{id}", catalogue.read_model, "Read a model of the catalogue"),
        route("PATCH", "/admin/models/{id}", catalogue.update_model, "Change a model", UpdateModelRequest),
        route("GET", "/admin/prices", catalogue.list_prices, "List versions of prices"),
        route("POST", "/admin/prices", catalogue.create_price, "Set a price", CreatePriceRequest, status=201),
        route("POST", "/admin/prices/import", PriceImport(process).import_prices, "Import a price list"),
        route("GET", "/admin/settings", system.read_settings, "Read the settings"),
        route("PATCH", "/admin/settings", system.change_settings, "Change settings", ChangeSettingsRequest),
        route("POST", "/admin/webhook/test", webhooks.test, "Send a ping to the webhook"),
        route("GET", "/admin/events", webhooks.list, "Read what happened"),
        route("POST", "/admin/events/{id}/resend", webhooks.resend, "Send an event again"),
        route("GET", "/admin/audit", system.list_audit, "Read who changed what"),
        route("GET", "/admin/ledger/check", system.check_ledger, "Recompute the books"),
    )
