"""The document over all functions, and the routes of the web function, which serve it.

The one module that stands above the use cases. What it takes to build the document is imported when somebody
first asks for it: a cold start pays for none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.web import operations as web_operations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.http import Operation
    from gateway.runtime.process import Process


def operations(process: Process) -> Sequence[Operation]:
    """Return the routes of the web function."""
    return web_operations(process, lambda: whole_document(process))


def whole_document(process: Process) -> dict[str, Any]:
    """Return the OpenAPI document of every function's routes."""
    from gateway.openapi.document import build  # noqa: PLC0415

    return build(every_operation(process), version=process.settings.version)


def every_operation(process: Process) -> list[Operation]:
    """Return the operations of every function, in the order in which they are asked for a path."""
    from gateway import admin, billing, chat, keys, media, messages, usage  # noqa: PLC0415

    functions = (
        chat.operations,
        messages.operations,
        media.operations,
        keys.operations,
        usage.operations,
        admin.operations,
        billing.operations,
        operations,
    )
    return [operation for function in functions for operation in function(process)]
