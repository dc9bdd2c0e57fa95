"""Providers: a table of who they are, and one file per wire format that they speak."""
