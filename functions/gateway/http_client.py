"""A client for calls of the database and of providers: httpx's interface, without what it does for strangers.

A chat request makes three calls, and through httpx.AsyncClient they were four fifths of the CPU that it took.
Left out is what none of them needs: cookies, redirects, authentication, hooks, relative URLs and log lines.
"""

from __future__ import annotations

import functools
from typing import Any

import httpx

_DEFAULT_HEADERS = {
    b"accept": b"*/*",
    b"accept-encoding": b"gzip, deflate",
    b"connection": b"keep-alive",
    b"user-agent": f"python-httpx/{httpx.__version__}".encode(),
}


class DirectClient(httpx.AsyncClient):
    """Hands requests straight to a transport: `plain` for http://, where that is another.

    URLs are whole. Nothing is followed, kept or logged. The transports are closed with it.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        timeout: httpx.Timeout,
        plain: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(
            transport=transport,
            mounts=None if plain is None else {"http://": plain},
            timeout=timeout,
            trust_env=False,
        )
        self._secure = transport
        self._plain = transport if plain is None else plain
        self._patience = timeout.as_dict()

    def build_request(  # type: ignore[override]
        self,
        method: str,
        url: httpx.URL | str,
        *,
        headers: Any = None,
        content: Any = None,
        json: Any = None,
        params: Any = None,
        extensions: dict[str, Any] | None = None,
        **_others: Any,
    ) -> httpx.Request:
        """Return the request that httpx would build, of the parts named here; others are left out."""
        if isinstance(url, str):
            url = _url(url)
        named = (headers if isinstance(headers, httpx.Headers) else httpx.Headers(headers)).raw
        told = {name.lower() for name, _ in named}
        raw = [(b"host", url.netloc)] if b"host" not in told else []
        raw += [pair for pair in _DEFAULT_HEADERS.items() if pair[0] not in told]
        raw += named
        patience = {"timeout": self._patience.copy()}
        if extensions:
            patience.update(extensions)
        if json is not None or params or not isinstance(content, bytes) or b"content-length" in told:
            return httpx.Request(
                method,
                url,
                params=params or None,
                headers=raw,
                content=content,
                json=json,
                extensions=patience,
            )
        raw.append((b"content-length", b"%d" % len(content)))
        made = httpx.Request(method, url, headers=raw, stream=httpx.ByteStream(content), extensions=patience)
        # Told, so that httpx need not try it out on each header.
        made.headers.encoding = "latin-1"
        return made

    async def request(self, method: str, url: httpx.URL | str, **told: Any) -> httpx.Response:
        return await self.send(self.build_request(method, url, **told))

    async def send(self, request: httpx.Request, *, stream: bool = False, **_others: Any) -> httpx.Response:
        """Send it once, as it is. Raises httpx.TransportError."""
        if self.is_closed:
            raise RuntimeError("the client has been closed")
        transport = self._plain if request.url.scheme == "http" else self._secure
        response = await transport.handle_async_request(request)
        response.request = request
        if not stream:
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response


@functools.lru_cache(maxsize=512)
def _url(text: str) -> httpx.URL:
    return httpx.URL(text)
