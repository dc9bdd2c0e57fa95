"""The shared core of every function: one gateway, whatever the entry point."""
