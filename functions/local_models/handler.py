"""The function of the local models. Its image runs it by gateway.runtime.streaming."""

from gateway.local_models.service import MountedService

app = MountedService("/local-models")
