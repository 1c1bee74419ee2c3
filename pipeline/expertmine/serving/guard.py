"""Authentication: requires a token on every path but ``/health``, and on loopback a loopback name in the Host header.

The Host check stops DNS rebinding: a web page open in a local browser can point its own name at loopback, but the
browser then sends that name. Knows nothing of the routes.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from expertmine.serving.refusals import Refusal

OPEN = "/health"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, token: str, names: frozenset[str] | None) -> None:
        """Guard an application.

        Args:
            names: accepted names in the Host header, with any port; None for all.
        """
        self.app = app
        self.token = token.encode()
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # only HTTP is served

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            self._admit(scope)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send_marked)
        else:
            await self.app(scope, receive, send_marked)

    def _admit(self, scope: Scope) -> None:
        """Check a request.

        Raises:
            Refusal: wrong host, or no valid token.
        """
        headers = Headers(scope=scope)
        host = re.sub(r":\d*$", "", headers.get("host", "")).lower()
        if self.names is not None and host not in self.names:
            message = f"the Host header is {host!r}: expected one of {', '.join(sorted(self.names))}"
            raise Refusal(403, message, "wrong_host")
        if scope["path"] == OPEN:
            return
        given = [self._credentials(value) for value in headers.getlist("authorization")]
        if len(given) != 1 or not secrets.compare_digest(given[0], self.token):
            found = "wrong token" if given else "no token"
            message = f"{found}: expected the header `Authorization: Bearer TOKEN`"
            raise Refusal(401, message, "invalid_token", headers={"www-authenticate": "Bearer"})

    @staticmethod
    def _credentials(value: str) -> bytes:
        scheme, _, credentials = value.partition(" ")
        return credentials.strip().encode() if scheme.lower() == "bearer" else b""
