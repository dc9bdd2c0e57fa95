"""The usage function."""

from gateway.runtime.function import Function
from gateway.usage import operations

app = Function(operations)
handler = app.handle
