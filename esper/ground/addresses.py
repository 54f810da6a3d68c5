"""Checks the addresses of webhooks and of their proxies. The advice never contains the address."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

MOST_BYTES = 8192
"""Largest size of an address or token in bytes. Servers refuse a longer address or token."""


def is_one_word(text: str) -> bool:
    """Return whether a text consists of visible ASCII characters without spaces."""
    return text.isascii() and text.isprintable() and " " not in text


def wrong_address(address: str) -> str:
    """Return advice to correct the address of a webhook. The advice is empty if the address is valid."""
    if (parts := _parts(address)) is None:
        return "its content is no address: give https://HOST/PATH in one line"
    if parts.port == 0:
        return "the port in the address is 0"
    if parts.username is not None:
        return "the address has a user name: leave it out, and give a password as token_file"
    return ""


def wrong_proxy(address: str, *, is_secret: bool) -> str:
    """Return advice to correct the address of a proxy. The advice is empty if the address is valid.

    Args:
        is_secret: True: the address comes from a file or an environment variable, and may have a user name.
    """
    if (parts := _parts(address)) is None or parts.path not in ("", "/") or parts.query or parts.fragment:
        return "it is no address of a proxy: give http://HOST:PORT in one line"
    if parts.port == 0:
        return "the port in the address is 0"
    if parts.username is not None and not is_secret:
        return "the address has a user name, which is a secret: write it into a file of mode 0600, and give proxy_file"
    return ""


def _parts(address: str) -> SplitResult | None:
    """Return the parts of an address that begins with http:// or https://. None: it is not such an address."""
    if not is_one_word(address) or len(address) > MOST_BYTES:
        return None
    try:
        parts = urlsplit(address)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != -1
    except ValueError:
        return None
    return parts if is_valid else None
