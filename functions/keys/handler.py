"""The keys function."""

from gateway.keys import operations
from gateway.runtime.function import Function

app = Function(operations)
handler = app.handle
