"""Wires that are imported when the first call needs them, so that no start pays for a provider it has not."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LateWire:
    """Stands for the wire of this name in that module, which is imported at the first use."""

    __slots__ = ("_module", "_name")

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(import_module(self._module), self._name), attribute)

    def __repr__(self) -> str:
        return f"{self._module}.{self._name}"


def late_wire(module: str, name: str) -> Any:
    """Return a stand-in for a wire, of whatever protocol it is."""
    return LateWire(module, name)
