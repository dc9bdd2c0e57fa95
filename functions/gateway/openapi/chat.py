"""The documentation of the chat function's routes."""

from __future__ import annotations

from gateway.database.rpc import RateLimits, Refusal
from gateway.errors import BadRequest, NotFound, ProviderFailed, ProviderTimeout, Unavailable, Unprocessable
from gateway.metering import refusal_error
from gateway.openapi.routes import Content, Parameter, Route, Routes
from gateway.schemas.answers import chat as answers

_MODEL = "gpt-4o-mini"


def _refusal(code: str, **details: object) -> Refusal:
    return Refusal(code, RateLimits(), {"model": _MODEL, **details})


_LIMITED = {"subject": "key", "metric": "requests", "per": "minute", "limit": 60}

METERED_REFUSALS = (
    *tuple(
        refusal_error(refusal)
        for refusal in (
            _refusal(
                "insufficient_credits",
                affordable_output_tokens=820,
                needed_usd="0.0125",
                available_usd="0.0041",
            ),
            _refusal("scope_missing"),
            _refusal("customer_in_debt", debt_usd="2.5"),
            _refusal("model_not_allowed"),
            _refusal("model_not_found"),
            _refusal("model_not_priced"),
            _refusal("model_wrong_output", output="text", output_modalities=["image"]),
            _refusal("idempotency_running"),
            _refusal("idempotency_reused", first_request_id="req_01a1fd2ab32670e3815c293832e5f73a"),
            _refusal("idempotency_mismatch"),
            _refusal("input_unbounded"),
            _refusal("rate_limit_exceeded", **_LIMITED, never=False, retry_after_seconds=12),
            _refusal(
                "rate_limit_exceeded",
                **{**_LIMITED, "metric": "tokens", "limit": 1000},
                never=True,
                retry_after_seconds=None,
            ),
        )
    ),
    BadRequest("The provider refused the request.", code="provider_refused"),
    ProviderFailed("The provider failed."),
    Unavailable("The provider can't be reached.", code="provider_unavailable", retry_after=5),
    Unavailable("The provider's own limit is reached.", code="provider_rate_limited", retry_after=5),
    ProviderTimeout("The provider took longer than a request may."),
)
"""What any call of a model may come to."""

IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "A second request with it on the same key is never charged again within 24 hours. While the first runs, "
    "and after it was charged: 409; with another body: 422. A first one that was not charged frees it.",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "order-1042",
)

_STREAM = Content(
    "text/event-stream",
    "Server-sent events: OpenAI's chunks, each as `data: {…}`, then `data: [DONE]`. Comments (`: "
    "keep-alive`) come in silence. With `stream_options.include_usage` the last chunk has empty `choices`, "
    "`usage` and `gateway_usage`. "
    'An error after the beginning is an event `data: {"error": …}`, and the end.',
    'data: {"id":"chatcmpl-9x2","object":"chat.completion.chunk","created":1795262400,"model":"gpt-4o-mini",'
    '"choices":[{"index":0,"delta":{"role":"assistant","content":"Hello!"},"finish_reason":null}]}\n\n'
    "data: [DONE]\n\n",
)

ROUTES: Routes = {
    "POST /v1/chat/completions": Route(
        answer=answers.ChatCompletion,
        stream=_STREAM,
        metered=True,
        description="OpenAI's Chat Completions, of any model of the catalogue. The gateway checks the fields "
        "that are named here and passes all others on, in what the provider's wire can carry.\n\nBefore a "
        "provider is called, the most that the call may cost is held. The bound of the output is "
        "`max_completion_tokens` or `max_tokens`, times `n`; without one it is the smallest of the model's "
        "maximum, a setting, what the balance affords and what the token limits have left.\n\n`models` names "
        "others to try, in order, where the first can't be reached or fails before its first byte.",
        parameters=(IDEMPOTENCY_KEY,),
        request={
            "model": _MODEL,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 100,
        },
        refusals=(Unprocessable("messages: Field required", param="messages"),),
    ),
    "POST /generate": Route(
        answer=answers.GeneratedText,
        metered=True,
        description="One text in, one text out.",
        parameters=(IDEMPOTENCY_KEY,),
        request={"text": "Say hello.", "model_id": _MODEL, "max_length": 100},
    ),
    "POST /api/layers/chat": Route(
        answer=answers.LayersAnswer,
        metered=True,
        description="One message to a model of a provider that is named. A `user` that is not the key's "
        "owner: 401.",
        parameters=(
            IDEMPOTENCY_KEY,
            Parameter(
                "user", "header", "The username of the key's owner.", {"type": "string"}, "ada@example.com"
            ),
        ),
        request={"providerName": "openai", "model_name": _MODEL, "message": "Hello"},
        refusals=(
            Unprocessable(
                "'acme' is not a provider that the gateway knows.",
                param="providerName",
                code="unknown_provider",
            ),
        ),
    ),
    "GET /v1/models": Route(
        answer=answers.ModelList,
        description="In OpenAI's shape, with what OpenRouter's has beside it. Prices are what the customer "
        "pays.",
    ),
    "GET /v1/models/{name}": Route(
        answer=answers.Model,
        description="A model's name may hold slashes.",
        parameters=(Parameter("name", "path", "The model's id.", {"type": "string"}, _MODEL),),
        refusals=(NotFound("The model 'gpt-0' does not exist here.", code="model_not_found", param="model"),),
    ),
    "GET /models/simple": Route(
        answer=answers.ModelNames, public=True, description="What there is, for everybody."
    ),
}
