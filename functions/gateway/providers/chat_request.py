"""What the wires that translate read of a chat request in OpenAI's shape.

Each function refuses by name (422) what it can't read, so that nothing which a client said is lost.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.errors import BadRequest, Unprocessable
from gateway.providers.failures import refuse_parameter, unsupported_content

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gateway.providers.wire import ProviderCall

_DATA_URL = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),(.*)", re.DOTALL | re.IGNORECASE)


def object_field(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a field that is an object; empty where it is missing or null."""
    value = given.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Unprocessable(f"{name} must be an object.", param=name)
    return value


def refuse_unknown(call: ProviderCall, given: Mapping[str, Any], known: Collection[str], path: str) -> None:
    """Refuse each field of an object that is not among the known ones, unless it may be left out."""
    for name, value in given.items():
        if value is not None and name not in known:
            refuse_parameter(call, f"{path}.{name}")


def tool_arguments(text: Any, path: str) -> dict[str, Any]:
    """Return the arguments of a tool call as an object; empty where there are none."""
    if not isinstance(text, str) or not text.strip():
        return {}
    try:
        arguments = json_text.parse_request(text.encode("utf-8", "surrogatepass"), storable=False)
    except BadRequest:
        arguments = None
    if not isinstance(arguments, dict):
        raise Unprocessable("A tool call's arguments must be a JSON object.", param=path)
    return arguments


def read_data_url(call: ProviderCall, url: str, path: str) -> tuple[str, str]:
    """Return the media type, in lower case, and the base64 text of a data URL."""
    found = _DATA_URL.fullmatch(url)
    if found is None:
        raise unsupported_content(call, path, "media other than by https URL or data URL")
    media_type, parameters, data = found.groups()
    if ";base64" not in parameters.lower():
        raise unsupported_content(call, path, "data URLs that are not in base64")
    return media_type.strip().lower(), data
