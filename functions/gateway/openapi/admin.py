"""The documentation of the admin function's routes."""

from __future__ import annotations

from typing import get_args

from gateway.errors import BadRequest, Conflict, NotFound, Unprocessable
from gateway.openapi.routes import (
    LIMIT,
    PAGE,
    Content,
    Parameter,
    Route,
    Routes,
    path_id,
    unknown,
)
from gateway.schemas.admin_queries import Entity, EventState
from gateway.schemas.answers import admin as answers

_SERVICE = (path_id("service"),)
_NO_SERVICE = unknown("service")
_BASE_URL = Unprocessable("base_url must be https.", param="base_url", code="invalid_base_url")
_KEY_REQUIRED = Unprocessable(
    "A base_url of another origin needs the provider_key anew.",
    code="provider_key_required",
    param="provider_key",
)
_NOT_OFFERED = Unprocessable(
    "enabled_models names a model that the catalogue does not have from OpenAI.",
    code="model_not_found",
    param="enabled_models",
)
_INVALID_AMOUNT = Unprocessable(
    "The amount must not be zero, nor beyond a billion USD, nor finer than the tenth decimal of a USD, "
    "and the balance stays below ten billion.",
    code="invalid_amount",
    param="usd",
)
_PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}


def _taken(param: str) -> Conflict:
    return Conflict(f"This {param} is taken.", code=f"{param}_taken", param=param)


_CUSTOMER = (path_id("customer"),)
_NO_CUSTOMER = unknown("customer")
_MODEL = (path_id("model"),)
_NO_MODEL = unknown("model")
_ERASED = Conflict("This customer is erased.", code="customer_erased")
_ACTIVE = Parameter("active", "query", "Those that are, or are not.", {"type": "boolean"}, True)
_TEXT = {"type": "string", "minLength": 1, "maxLength": 320}
_ENTITY = {"type": "string", "enum": list(get_args(Entity))}
_ENTITY_ID = {"type": "string", "pattern": "^[0-9]{1,19}$"}
_MOMENT = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}
_DAY = {"type": "string", "format": "date"}
_EVENT_ID = {"type": "string", "pattern": "^evt_[0-9a-f]{32}$"}
_EVENT_ID_EXAMPLE = "evt_01a1fd2ab32670e3815c293832e5f73a"
_EVENT_STATE = {"type": "string", "enum": list(get_args(EventState))}
_EVENT_TYPE = {"type": "string", "maxLength": 100, "pattern": r"^[a-z_]+(\.[a-z_]+)+$"}

ROUTES: Routes = {
    "POST /customers": Route(
        answer=answers.CreatedCustomer,
        tokens=True,
        description="The username is the email unless another is given.",
        request={"name": "Ada", "email": "ada@example.com", "company": "Analytical Engines"},
        refusals=(_taken("email"), _taken("username")),
    ),
    "GET /admin/customers": Route(
        answer=answers.CustomerList,
        tokens=True,
        parameters=(
            *PAGE,
            Parameter(
                "q",
                "query",
                "To be found, in any case, in name, username, email or company.",
                _TEXT,
                "ada",
            ),
            _ACTIVE,
        ),
        refusals=(Unprocessable("active: must be true or false", param="active"),),
    ),
    "GET /admin/customers/{id}": Route(
        answer=answers.Customer, tokens=True, parameters=_CUSTOMER, refusals=(_NO_CUSTOMER,)
    ),
    "PATCH /admin/customers/{id}": Route(
        answer=answers.Customer,
        tokens=True,
        description="A field that is absent stays as it is. `active` false suspends at once: the next "
        "call is refused, running ones end as they would.",
        parameters=_CUSTOMER,
        request={"active": False},
        refusals=(
            _NO_CUSTOMER,
            _taken("email"),
            _taken("username"),
            _ERASED,
            Unprocessable(
                "time_zone must be the name of a time zone, such as Asia/Kolkata.",
                code="unknown_time_zone",
                param="time_zone",
            ),
        ),
    ),
    "DELETE /admin/customers/{id}": Route(
        answer=answers.Customer,
        tokens=True,
        description="Erases the person, for good: name, username, email, company, the link to Supabase Auth, "
        "the names of its keys and the notes of its payments, in the audit log too. Its keys are revoked. "
        "Balance, entries with their references, the log of calls and the sums stay. A second time changes "
        "nothing.",
        parameters=_CUSTOMER,
        refusals=(_NO_CUSTOMER,),
    ),
    "POST /admin/create_user": Route(
        answer=answers.CreatedUser,
        tokens=True,
        description="A customer, its first key, credits and limits of that key, all or nothing.",
        request={
            "name": "Ada",
            "email": "ada@example.com",
            "credits": 50000,
            "rate_limits": {"requests_per_minute": 600},
        },
        refusals=(_taken("email"), _INVALID_AMOUNT),
    ),
    "POST /admin/add_credits": Route(
        answer=answers.AddedCredits,
        tokens=True,
        description="The customer is named by `user_id`, `api_key` or `email`, the amount by `credits` or "
        "`usd`. The same `reference` twice is credited once. A negative amount corrects.",
        request={"email": "ada@example.com", "usd": "10", "reference": "invoice-1"},
        refusals=(
            unknown("customer", param="email"),
            unknown("key", param="api_key"),
            _ERASED,
            Unprocessable(
                "reference: stripe:… is for payments that Stripe tells of",
                param="reference",
                code="reserved_reference",
            ),
            Conflict(
                "Another amount was booked under this reference.",
                code="reference_conflict",
                param="reference",
            ),
            Conflict(
                "The correction is more than is free of the balance.", code="more_than_free", param="usd"
            ),
            _INVALID_AMOUNT,
        ),
    ),
    "GET /admin/monitor": Route(
        answer=answers.SystemMonitor,
        tokens=True,
        description="Today begins at midnight UTC. What is called cost without more is what was charged. "
        "Keys are told by their prefixes.",
    ),
    "GET /admin/top_customers": Route(
        answer=answers.TopCustomers,
        tokens=True,
        description="Days are UTC's; by default the last 30, and 92 at most. Calls count once ended.",
        parameters=(
            LIMIT,
            Parameter("from", "query", "The first day.", _DAY, "2026-11-01"),
            Parameter("to", "query", "The day after the last; by default tomorrow.", _DAY, "2026-12-01"),
        ),
        refusals=(Unprocessable("from must lie before to, by 92 days at most.", param="from"),),
    ),
    "GET /admin/balance": Route(
        answer=answers.BalanceList,
        tokens=True,
        description="Every customer's account with its keys' prefixes, by id.",
        parameters=PAGE,
    ),
    "POST /admin/limit": Route(
        answer=answers.SubjectLimits,
        tokens=True,
        description="Merges limits into those of a key (`api_key` or `key_id`), a customer (`user_id`) or a "
        "`service`; null removes one. With `model` they are a key's for that model, with `*` for each model "
        "by itself. `warn` holds soft marks; a limit without one gets it at `warn_percent` (80).",
        request={
            "user_id": 42,
            "rate_limits": {
                "requests_per_minute": 600,
                "tokens_per_day": 1000000,
                "spend_usd_per_month": "100",
            },
            "warn": {"spend_usd_per_month": "50"},
        },
        refusals=(
            unknown("key", param="key_id"),
            unknown("customer", param="user_id"),
            unknown("service", param="service"),
            unknown("model", param="model"),
        ),
    ),
    "GET /admin/providers": Route(answer=answers.KnownProviders, tokens=True),
    "GET /admin/services": Route(answer=answers.ServiceList, tokens=True, parameters=PAGE),
    "POST /admin/services": Route(
        answer=answers.Service,
        tokens=True,
        description="A connection to a provider. Its key is kept sealed and never shown. Of the provider's "
        "own URL, unless `base_url` names another: HTTPS, and no address inside a network. A model is named, "
        "or given its place among the services that sell it: by `priority`, lower first, and `weight`, the "
        "share of the traffic among equals. A service that keeps failing is set aside for a while: it is "
        "tried last.",
        request={
            "name": "openai",
            "provider": "openai",
            "provider_key": "sk-proj-a-key-of-yours",
            "enabled_models": ["gpt-4o-mini"],
        },
        refusals=(_taken("name"), _BASE_URL, _KEY_REQUIRED, _NOT_OFFERED),
    ),
    "GET /admin/services/{id}": Route(
        answer=answers.Service, tokens=True, parameters=_SERVICE, refusals=(_NO_SERVICE,)
    ),
    "PATCH /admin/services/{id}": Route(
        answer=answers.Service,
        tokens=True,
        description="A field that is absent stays as it is. A `base_url` of another origin needs the "
        "`provider_key` anew, so that a key that nobody can read can't be sent to a stranger.",
        parameters=_SERVICE,
        request={
            "enabled_models": ["gpt-4o-mini", {"model": "gpt-4o", "priority": 10, "weight": 3}],
            "priority": 50,
        },
        refusals=(_NO_SERVICE, _taken("name"), _BASE_URL, _KEY_REQUIRED, _NOT_OFFERED),
    ),
    "DELETE /admin/services/{id}": Route(
        answer=answers.DeletedService, tokens=True, parameters=_SERVICE, refusals=(_NO_SERVICE,)
    ),
    "POST /admin/services/{id}/test": Route(
        answer=answers.ServiceTest,
        tokens=True,
        description="Calls the provider now with the stored key: its list of models and, where that says "
        "nothing about the key, one chat of a single token, which is charged to nobody. Takes 15 seconds "
        "at most. `problem` says what is wrong, `message` how to mend it.",
        parameters=_SERVICE,
        refusals=(_NO_SERVICE,),
    ),
    "GET /admin/models": Route(
        answer=answers.CatalogueList,
        tokens=True,
        description="The whole catalogue, with the prices that are in force.",
        parameters=(
            *PAGE,
            Parameter(
                "q",
                "query",
                "To be found, in any case, in the name, the display name or a provider's name of it.",
                _TEXT,
                "gpt-4o",
            ),
            _ACTIVE,
        ),
        refusals=(Unprocessable("active: must be true or false", param="active"),),
    ),
    "GET /admin/models/{id}": Route(
        answer=answers.CatalogueModel, tokens=True, parameters=_MODEL, refusals=(_NO_MODEL,)
    ),
    "PATCH /admin/models/{id}": Route(
        answer=answers.CatalogueModel,
        tokens=True,
        description="A field that is absent stays as it is. `active` false hides the model and refuses it: "
        "it is never deleted, for the books refer to it. Of `offers` one is added where its provider does "
        "not offer the model yet; else it takes the name there and the prices that are given, as a new "
        "version.",
        parameters=_MODEL,
        request={
            "display_name": "GPT-4o mini",
            "offers": [{"provider": "openrouter", "upstream_model": "openai/gpt-4o-mini", "prices": _PRICES}],
        },
        refusals=(_NO_MODEL, Unprocessable("offers names a provider twice.", param="offers")),
    ),
    "POST /admin/models": Route(
        answer=answers.CatalogueModel,
        tokens=True,
        description="A model, who sells it and for how much (USD per million tokens), all or nothing.",
        request={
            "name": "my-model",
            "context_length": 32768,
            "max_output_tokens": 4096,
            "offers": [{"provider": "openai-compatible", "upstream_model": "my-model-v1", "prices": _PRICES}],
        },
        refusals=(_taken("name"), Unprocessable("offers names a provider twice.", param="offers")),
    ),
    "GET /admin/prices": Route(
        answer=answers.PriceList,
        tokens=True,
        description="Every version, the newest first.",
        parameters=(
            *PAGE,
            Parameter("model", "query", "Of this model alone.", {"type": "string"}, "gpt-4o-mini"),
        ),
    ),
    "POST /admin/prices": Route(
        answer=answers.Price,
        tokens=True,
        description="A new version: what was admitted is never priced again. In force from `effective_from`, "
        "by default now. With `service_id` for that service alone.",
        request={
            "model": "gpt-4o-mini",
            "provider": "openai",
            **_PRICES,
            "source": "https://openai.com/api/pricing",
            "source_date": "2026-11-21",
        },
        refusals=(
            unknown("model", param="model"),
            NotFound(
                "This provider does not offer this model yet: name its upstream_model.",
                code="offer_not_found",
                param="provider",
            ),
            NotFound(
                "There is no such service of this provider.", code="service_not_found", param="service_id"
            ),
            Conflict("There is one like this already."),
            Unprocessable(
                "effective_from must not lie in the past: what was admitted is not priced again.",
                param="effective_from",
            ),
        ),
    ),
    "POST /admin/prices/import": Route(
        answer=answers.PriceImport,
        tokens=True,
        description="Brings a price list in, all of it or nothing: models and offers that are not there are "
        "added, and a price that is another than the one in force begins a new version. What the list lacks "
        "stays as it is, and so does what is known of a model already. With `dry_run` it only tells the "
        "difference.\n\n"
        "The first line names the columns, in any order. `model`, `provider`, `input` and `output` are "
        "needed; the others are `upstream_model`, `context_length`, `max_output_tokens`, "
        "`input_modalities`, `output_modalities` (words with spaces between), `cached_input`, `cache_write`, "
        "`audio_input`, `image_input`, `audio_output`, `image_output`, `per_request`, `per_image`, "
        "`cache_write_1h`, `source`, `source_date` and `above_input_tokens`: a line with that is what "
        "requests with more input tokens cost, all of them, and has the classes of the offer's own line. "
        "Prices are USD per million tokens; an empty cell says "
        "nothing. In place of `input` and `output` there may be `price_per_token`: USD for a token, read or "
        "written alike. A list has at most 20,000 lines.",
        upload=Content(
            "text/csv",
            "The list, as UTF-8.",
            "model,provider,input,cached_input,output,source,source_date\n"
            "gpt-4o-mini,openai,0.15,0.075,0.60,https://openai.com/api/pricing,2026-11-21\n",
        ),
        parameters=(
            Parameter(
                "dry_run",
                "query",
                "Tell the difference and import nothing.",
                {"type": "boolean", "default": False},
                True,
            ),
            Parameter(
                "effective_from",
                "query",
                "From when on the prices hold; by default now.",
                {"type": "string", "format": "date-time"},
                "2027-01-01T00:00:00Z",
            ),
        ),
        refusals=(
            BadRequest("A price list must be UTF-8."),
            Unprocessable(
                "line 17, input: must be a decimal number such as 12.5.",
                code="malformed_price_list",
                param="lines.17.input",
            ),
            Unprocessable("dry_run must be true or false.", param="dry_run"),
            Unprocessable(
                "effective_from must not lie in the past: what was admitted is not priced again.",
                param="effective_from",
            ),
        ),
    ),
    "GET /admin/settings": Route(answer=answers.SettingsAnswer, tokens=True),
    "PATCH /admin/settings": Route(
        answer=answers.SettingsAnswer,
        tokens=True,
        description="A field that is absent stays as it is; null of a default limit: none, of a retention: "
        "for ever. `webhook_secret` (`whsec_` and base64, or a text, of 24 to 64 bytes) is kept sealed and "
        "never shown.",
        request={"commission_percent": "5", "default_requests_per_minute": 60},
        refusals=(
            Unprocessable(
                "A webhook_url needs a webhook_secret: what is sent there is signed.",
                code="webhook_secret_required",
                param="webhook_secret",
            ),
            Unprocessable(
                "top_up_minimum_usd must not be beyond top_up_maximum_usd, and top_up_amounts_usd must lie "
                "between the two.",
                code="invalid_top_ups",
                param="top_up_amounts_usd",
            ),
            Unprocessable("webhook_url must be https.", code="invalid_webhook_url", param="webhook_url"),
            Unprocessable(
                "webhook_secret must have from 24 to 64 bytes.",
                code="invalid_webhook_secret",
                param="webhook_secret",
            ),
        ),
    ),
    "GET /admin/audit": Route(
        answer=answers.AuditList,
        tokens=True,
        description="Every change of settings, customers, keys, services, routes, models, offers, prices and "
        "limits, by the API or by hand, the newest first. No secrets.",
        parameters=(
            *PAGE,
            Parameter("entity", "query", "Of this table.", _ENTITY, "settings"),
            Parameter("entity_id", "query", "Of this row.", _ENTITY_ID, "1"),
            Parameter("actor", "query", "By this one.", _TEXT, "postgres"),
            Parameter("from", "query", "From then on.", _MOMENT, "2026-11-01"),
            Parameter("to", "query", "Until before then.", _MOMENT, "2026-12-01"),
        ),
        refusals=(Unprocessable("from: must be a time or a date", param="from"),),
    ),
    "POST /admin/webhook/test": Route(
        answer=answers.WebhookTest,
        tokens=True,
        description="Sends an event of the type `webhook.test` to the `webhook_url` of the settings now, "
        "signed as every event is (https://www.standardwebhooks.com), and tells the receiver's status or "
        "what is wrong. It is not tried again. The other events, such as `limit.soft_crossed`, are sent at "
        "least once: a receiver knows one that it has by its `webhook-id`.",
        refusals=(
            Conflict("No webhook_url is set: PATCH /admin/settings sets one.", code="webhook_not_set"),
        ),
    ),
    "GET /admin/events": Route(
        answer=answers.EventList,
        tokens=True,
        description="What happened that an operator wants to hear of, the newest first, and whether the "
        "webhook was told. Events are kept for 90 days.",
        parameters=(
            LIMIT,
            Parameter(
                "cursor", "query", "The `next_cursor` of the page before.", _EVENT_ID, _EVENT_ID_EXAMPLE
            ),
            Parameter("state", "query", "Of this state alone.", _EVENT_STATE, "given_up"),
            Parameter("type", "query", "Of this type alone.", _EVENT_TYPE, "limit.soft_crossed"),
        ),
        refusals=(Unprocessable("state: Input should be 'unsent', 'waiting', …", param="state"),),
    ),
    "POST /admin/events/{id}/resend": Route(
        answer=answers.ResentEvent,
        tokens=True,
        description="Puts the event in line for the webhook once more, under the same id, whatever became of "
        "it, and for the SNS topic where that was given up. One that was given up has one attempt more.",
        parameters=(Parameter("id", "path", "The event's id.", _EVENT_ID, _EVENT_ID_EXAMPLE),),
        refusals=(
            unknown("event"),
            Conflict("No webhook_url is set: PATCH /admin/settings sets one.", code="webhook_not_set"),
        ),
    ),
    "GET /admin/ledger/check": Route(
        answer=answers.LedgerCheck,
        tokens=True,
        description="Recomputes every balance from the ledger, every hold from the running calls, and every "
        "charge from its entries. It goes on from the last month's checkpoints, so that it takes as long "
        "however old the books are; with `full` it begins with the first entry and proves the checkpoints.",
        parameters=(
            Parameter("full", "query", "From the first entry on.", {"type": "boolean", "default": False}),
        ),
        refusals=(Unprocessable("full: must be true or false", param="full"),),
    ),
}
