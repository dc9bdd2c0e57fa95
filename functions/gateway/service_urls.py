"""The base URLs of services: which the gateway may call, and what two of them have in common.

A base URL comes from an admin, but an admin of the gateway is not an admin of the network that it runs in. So
a URL that leads inside (loopback, private and link-local addresses, metadata services) is refused, however
it is written, unless a setting of the local stack allows it. The gateway follows no redirects.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from gateway.errors import Unprocessable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_URL_CHARS = 512
RESOLVE_SECONDS = 5.0
_MOST_REMEMBERED = 512
"""URLs whose check, which reads nothing but the text, is not made at each call of a provider."""

_DEFAULT_PORTS = {"https": 443, "http": 80}
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# The WHATWG URL standard takes a host for an IPv4 address if its last label is a number, in any base.
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
# Names that resolve inside by convention or by RFC (6761, 6762, 8375), and Google's metadata service.
_INSIDE_NAMES = (
    "localhost",
    "local",
    "internal",
    "localdomain",
    "lan",
    "home",
    "corp",
    "intranet",
    "home.arpa",
)
# Public by number, yet they answer only from inside: Azure's platform address.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
# Reserved by RFC 6890, 7526, 8215 and 3879; the standard library's is_global knows them since 3.12 or never.
_RESERVED = tuple(
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "fec0::/10", "5f00::/16", "3fff::/20")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")


class UnresolvedHostError(Unprocessable):
    """The host of a URL has no address."""


def check_base_url(url: str, *, allow_private: bool = False) -> str:
    """Return the URL in its normal form, without a slash at its end.

    Raises Unprocessable (422, param base_url) unless it is HTTPS, without credentials, query or fragment,
    and leads outside by all that can be told without resolving it. `allow_private` permits HTTP and inside
    addresses, and nothing else.
    """
    # By position: the cache knows a call by how it is written.
    return _checked(url, allow_private)


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _checked(url: str, allow_private: bool) -> str:
    parts, host, port = _parse(url)
    if parts.scheme == "http" and not allow_private:
        raise _refused("must be https")
    address = _address(host)
    if not allow_private:
        if address is not None:
            _check_address(address)
        elif "." not in host.rstrip(".") or _is_inside_name(host):
            raise _refused(f"must not name a host inside a network ({host})")
    return f"{_origin(parts.scheme, host, port, explicit=False)}{parts.path.rstrip('/')}"


async def check_resolved(url: str, *, allow_private: bool = False, resolve: Resolver | None = None) -> str:
    """Return what `check_base_url` returns, after resolving the host: every address must lead outside.

    For registration. A name may resolve elsewhere later; what guards the provider's key then is that TLS
    demands a certificate for the name. Raises Unprocessable (422) also where the name does not resolve.
    """
    normal = check_base_url(url, allow_private=allow_private)
    if allow_private:
        return normal
    _, host, port = _parse(url)
    if _address(host) is not None:
        return normal
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            addresses = await (resolve or _resolve)(host, port)
    except (OSError, TimeoutError):
        raise _unresolved(f"names a host that can't be resolved ({host})") from None
    if not addresses:
        raise _unresolved(f"names a host that has no address ({host})")
    for address in addresses:
        _check_address(ipaddress.ip_address(address.partition("%")[0]))
    return normal


def origin(url: str) -> str:
    """Return scheme, host and port in one normal form: `https://api.example.com:443`.

    Two URLs have one origin if and only if a key sent to the one may be sent to the other. Raises
    Unprocessable (422) for what is no base URL.
    """
    return _explicit_origin(url)


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _explicit_origin(url: str) -> str:
    parts, host, port = _parse(url)
    return _origin(parts.scheme, host, port, explicit=True)


def _parse(url: str) -> tuple[SplitResult, str, int]:
    if (
        not 0 < len(url) <= MAX_URL_CHARS
        or not url.isascii()
        or not url.isprintable()
        or " " in url
        or "\\" in url
    ):
        # urlsplit would strip some of these silently, and another parser may read them otherwise.
        raise _refused(
            "must be printable ASCII without spaces or backslashes (an international name as xn--…)"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").lower()
    except ValueError:
        raise _refused("is not a URL") from None
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise _refused("must begin with https:// and a host")
    if "@" in parts.netloc:
        raise _refused("must not hold credentials")
    if "?" in url or "#" in url:
        raise _refused("must not have a query or a fragment")
    if any(part in {".", ".."} for part in parts.path.lower().replace("%2e", ".").split("/")):
        raise _refused("must not have . or .. in its path")
    if port == 0:
        raise _refused("has a port that is none")
    _check_host(host, bracketed="[" in parts.netloc)
    return parts, host.rstrip("."), port or _DEFAULT_PORTS[parts.scheme]


def _check_host(host: str, *, bracketed: bool) -> None:
    if bracketed:
        # A zone (%eth0) is this machine's business, and ip_address() would take it.
        if "%" in host or _address(host) is None:
            raise _refused("has a host that is no address")
        return
    labels = host.rstrip(".").split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise _refused("has a host that is no name")
    if _NUMBER.fullmatch(labels[-1]) and (_address(host) is None or host.endswith(".")):
        # 127.1, 0177.0.0.1, 2130706433 and 0x7f000001 are all loopback to some resolver.
        raise _refused("has an address that is not written as four decimal numbers")


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _check_address(address: Address) -> None:
    for face in _faces(address):
        if (
            not face.is_global
            or face.is_multicast
            or face in _METADATA
            or any(face in network for network in _RESERVED)
        ):
            raise _refused(f"must not lead to an address inside a network ({address})")


def _faces(address: Address) -> list[Address]:
    """Return the address and the IPv4 address that is wrapped into it, by any of the five ways."""
    faces: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            faces.append(address.ipv4_mapped)
        if address.sixtofour is not None:
            faces.append(address.sixtofour)
        if address.teredo is not None:
            faces.extend(address.teredo)
        if address in _NAT64 or address in _IPV4_COMPATIBLE:
            faces.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return faces


def _is_inside_name(host: str) -> bool:
    name = host.rstrip(".")
    return any(name == inside or name.endswith(f".{inside}") for inside in _INSIDE_NAMES)


def _origin(scheme: str, host: str, port: int, *, explicit: bool) -> str:
    address = _address(host)
    shown = f"[{address}]" if isinstance(address, ipaddress.IPv6Address) else host
    return (
        f"{scheme}://{shown}:{port}" if explicit or port != _DEFAULT_PORTS[scheme] else f"{scheme}://{shown}"
    )


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _unresolved(reason: str) -> UnresolvedHostError:
    return UnresolvedHostError(f"base_url {reason}.", param="base_url", code="invalid_base_url")


def _refused(reason: str) -> Unprocessable:
    return Unprocessable(f"base_url {reason}.", param="base_url", code="invalid_base_url")
