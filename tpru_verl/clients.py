"""The address of an OpenAI-compatible endpoint: how it is reached, and errors without its secrets."""

from __future__ import annotations

import ipaddress
import os
import ssl
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from tpru_verl.redaction import redact_urls, secrets_in, without
from tpru_verl.terminal import line_of


class Address:
    """The URL of a server. `shown` is the URL without passwords and keys."""

    def __init__(self, url: str, *secrets: object) -> None:
        """`secrets` are keys, and options that may hold some; none of them appears in a message."""
        self.url, self.shown = url.rstrip("/"), redact_urls(url.rstrip("/"))
        texts = (secret for secret in secrets if isinstance(secret, str))
        self._secrets = {*secrets_in(self.url, *secrets), *texts}

    def line(self, error: BaseException) -> str:
        """The error in one line, without secrets."""
        return without(line_of(error), self._secrets)

    def transport(self) -> dict[str, Any]:
        """Arguments of the HTTP client. A proxy cannot reach this machine; SSL_CERT_FILE is still read.

        A server cannot send rows and keys on to another one: a redirect is an answer with its status.
        """
        found: dict[str, Any] = {"follow_redirects": False}
        if is_loopback(urlsplit(self.url).hostname or ""):
            found |= {"trust_env": False, "verify": ssl.create_default_context()}
        return found

    def without_v1(self) -> str:
        """What to do about HTTP 404 where the URL does not end as those of most servers; "" elsewhere."""
        return (
            ""
            if self.url.endswith("/v1")
            else f"; most servers answer at {self.shown}/v1: add /v1 to the URL"
        )

    def proxy(self) -> str:
        """Which variable sends requests for this server to a proxy, and what to do; "" where none does."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if is_loopback(host) or proxy_bypass(host):
            return ""
        names = (f"{parts.scheme}_proxy", "all_proxy")
        found = next((n for name in names for n in (name, name.upper()) if os.environ.get(n)), "")
        hint = f"{found} sends requests for {host} to a proxy: set no_proxy={host} if it needs none"
        return hint if found else ""


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
