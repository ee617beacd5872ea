"""The API key, and whether an address may be served without one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from pathlib import Path

from rarl.errors import UserError
from rarl.serving.settings import ServiceConfig

SHORTEST = 16  # characters: a key that cannot be guessed


class ApiKey:
    """Held as a digest. Comparing digests takes the same time wherever two keys differ, and
    whatever their lengths."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def matches(self, authorization: bytes | None) -> bool:
        """`authorization` is the header's value, "Bearer KEY"."""
        scheme, _, given = (authorization or b"").partition(b" ")
        same = hmac.compare_digest(hashlib.sha256(given.strip()).digest(), self._digest)
        return same and scheme.lower() == b"bearer"


def read_api_key(config: ServiceConfig) -> ApiKey | None:
    """From the file, or else the variable. None: there is none. Raises UserError for one that is
    unreadable or weak."""
    if config.api_key_file is not None:
        where = f"api_key_file={config.api_key_file}"
        try:
            key = Path(config.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{where}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}"
            ) from None
    else:
        where = f"the environment variable {config.api_key_env}"
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            return None
    if len(key) < SHORTEST:
        raise UserError(
            f"{where}: the API key needs at least {SHORTEST} characters; `openssl rand -hex 24` makes one"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"{where}: the API key may hold printable ASCII characters without spaces only"
        )
    return ApiKey(key)


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine reaches."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return address.is_loopback or (mapped is not None and bool(mapped.is_loopback))


def require_key_for(host: str, key: ApiKey | None, config: ServiceConfig) -> None:
    """Raises UserError where other machines would be answered without a key."""
    if key is None and not is_loopback(host) and not config.open_without_key:
        raise UserError(
            f"http_options.host={host}: other machines reach this address, and there is no API key; set "
            f"{config.api_key_env}, or api_key_file, or say open_without_key: true"
        )
