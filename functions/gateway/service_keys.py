"""Provider keys at rest, sealed as gateway.sealing does it.

The associated data binds a key to the service's row, its provider and the origin of its base URL: a service
that is moved to another host no longer opens, so that a key which nobody can read can't be mailed to a
stranger either.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gateway import sealing
from gateway.sealing import SealError as ServiceKeyError
from gateway.sealing import is_current
from gateway.service_urls import origin

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ServiceKeyError", "is_current", "open_sealed", "seal"]


def seal(
    provider_key: str, *, master_keys: Mapping[str, bytes], service_id: int, provider: str, base_url: str
) -> str:
    """Return the provider key, sealed for this service, provider and origin under the first master key.

    Raises ServiceKeyError where there is no master key.
    """
    context = _context(service_id, provider, base_url)
    return sealing.seal(provider_key, master_keys=master_keys, context=context)


def open_sealed(
    sealed: str, *, master_keys: Mapping[str, bytes], service_id: int, provider: str, base_url: str
) -> str:
    """Return the provider key.

    Raises ServiceKeyError where the text is not a sealed key, where its master key is not among ours, and
    where it was sealed for another service, provider or origin, or changed since: AES-GCM can't tell which.
    """
    return sealing.open_sealed(
        sealed,
        master_keys=master_keys,
        context=_context(service_id, provider, base_url),
        what=f"the provider key of service {service_id}",
        why=f" for provider {provider} at {origin(base_url)}: it was sealed for another, or changed since",
    )


def _context(service_id: int, provider: str, base_url: str) -> bytes:
    # JSON keeps the parts apart, whatever they hold.
    return json.dumps(["sluice", sealing.VERSION, service_id, provider, origin(base_url)]).encode()
