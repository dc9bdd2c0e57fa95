"""The documentation of the Messages routes."""

from __future__ import annotations

from gateway.errors import NotFound, Unprocessable
from gateway.openapi.chat import IDEMPOTENCY_KEY
from gateway.openapi.routes import Content, Parameter, Route, Routes
from gateway.schemas.answers import messages as answers

_MODEL = "gpt-4o-mini"
_PARAMETERS = (
    Parameter(
        "anthropic-version",
        "header",
        "Accepted, and not demanded. Where Anthropic answers it goes on.",
        {"type": "string"},
        "2023-06-01",
    ),
    Parameter(
        "anthropic-beta",
        "header",
        "Accepted. Where Anthropic answers, those go on that change neither a call's cost nor what it may "
        "reach.",
        {"type": "string"},
        "interleaved-thinking-2025-05-14",
    ),
)
_STREAM = Content(
    "text/event-stream",
    "Anthropic's events. `message_delta`, the last but one, tells the usage, and in `gateway_usage` what the "
    "call has cost. `ping` comes in silence. An error after the beginning is the event `error`, and the end.",
    'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message","role":'
    '"assistant","model":"gpt-4o-mini","content":[],"stop_reason":null,"stop_sequence":null,"usage":'
    '{"input_tokens":0,"output_tokens":0}}}\n\n'
    'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)

ROUTES: Routes = {
    "POST /v1/messages": Route(
        answer=answers.MessagesAnswer,
        errors=answers.MessagesErrorAnswer,
        stream=_STREAM,
        metered=True,
        description="Anthropic's Messages, of any model of the catalogue. Where Anthropic itself answers, "
        "the request goes on as it is, and so does the answer, with thoughts and their signatures. For all "
        "other providers both are translated: tools and their results, images, documents, JSON by a schema, "
        "thoughts. Marks for caching stay behind there; what has no counterpart is refused (400), by its "
        "path.\n\nOf the request's fields only those are taken that are named here: another could change "
        "what the call costs. Refused are tools that run at the provider, files of Anthropic's, and threads "
        "(`thread_unsupported_request`, at which Anthropic's SDKs send the whole conversation).\n\nWhat "
        "is invalid is 400 under this path, as it is at Anthropic.",
        parameters=(IDEMPOTENCY_KEY, *_PARAMETERS),
        request={
            "model": _MODEL,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "Hello"}],
        },
        refusals=(
            Unprocessable("max_tokens: Field required", param="max_tokens"),
            Unprocessable(
                "OpenAI can't be told 'messages.0.content.0.citations': only Anthropic knows it.",
                param="messages.0.content.0.citations",
                code="unsupported_content",
            ),
        ),
    ),
    "POST /v1/messages/count_tokens": Route(
        answer=answers.TokenEstimate,
        errors=answers.MessagesErrorAnswer,
        description="An estimate by OpenAI's tokenizer, whatever the model: Anthropic's own counts are "
        "somewhat higher, and what is not text counts 765. It costs nothing, and no provider is asked.",
        parameters=_PARAMETERS,
        request={"model": _MODEL, "messages": [{"role": "user", "content": "Hello"}]},
        refusals=(NotFound("The model 'gpt-0' does not exist here.", code="model_not_found", param="model"),),
    ),
}
