"""The shared core of every function: one gateway, whatever the entry point."""

__version__ = "0.1.0"
