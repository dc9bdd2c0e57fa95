"""The chat function."""

from gateway import chat, media, messages
from gateway.runtime.function import Function

app = Function(
    lambda process: [
        *chat.operations(process),
        *messages.operations(process),
        *media.operations(process),
    ]
)
handler = app.handle
