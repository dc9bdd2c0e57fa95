"""The chat function."""

from gateway.chat import operations
from gateway.runtime.function import Function

app = Function(operations)
handler = app.handle
