"""The admin function."""

from gateway.admin import operations
from gateway.runtime.function import Function

app = Function(operations)
handler = app.handle
