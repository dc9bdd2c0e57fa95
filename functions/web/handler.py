"""The web function: what anybody may ask. The last to be asked for a path, so its 404 is everybody's."""

from gateway.runtime.function import Function
from gateway.web import operations

app = Function(operations)
handler = app.handle
