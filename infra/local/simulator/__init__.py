"""A provider simulator: an ASGI app that answers as the providers do, in their own wire formats.

Its answers are deterministic, its usage is counted by tiktoken, and a model's name says how it behaves
(behaviour.py). One file per wire format; `GET /sim/calls` tells what was asked of it.
"""

from infra.local.simulator.app import create_simulator
from infra.local.simulator.calls import Call, CallLog

__all__ = ["Call", "CallLog", "create_simulator"]
