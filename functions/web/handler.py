"""The web function: what anybody may ask. The last to be asked for a path, so its 404 is everybody's."""

from gateway.openapi import operations
from gateway.runtime.function import Function

app = Function(operations)
handler = app.handle
