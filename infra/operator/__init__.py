"""The operator's commands over a running gateway's HTTP API."""
