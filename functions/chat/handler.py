"""The chat function."""

from gateway import chat, media
from gateway.runtime.function import Function

app = Function(lambda process: [*chat.operations(process), *media.operations(process)])
handler = app.handle
