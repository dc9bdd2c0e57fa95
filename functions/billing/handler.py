"""The billing function."""

from gateway.billing import operations
from gateway.runtime.function import Function

app = Function(operations)
handler = app.handle
