"""What of an event is nobody's business downstream: ids become pseudonyms, IP addresses lose their end, consent is stated.

A pseudonym is HMAC-SHA256 (RFC 2104) of tenant and id under a secret key: the same id gives the same pseudonym, so that
histories stay whole, and nobody without the key can tell whose they are, or try ids out. With a new key everybody begins
anew, which is the point of it; the old keys stay in the settings so that erasures still find what was written under them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from typing import Any

import msgspec

from stream.settings import ConsentDefault
from stream.settings import Privacy as Settings

IDS = ("userId", "anonymousId", "previousId")
PREFIX = "pn_"
DIGEST_BYTES = 16  # 22 characters: two of a billion ids meet with a chance of 10^-21


class Privacy:
    """The settings at work, the same for every event."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [one.get_secret_value().encode() for one in settings.pseudonym_keys]
        self._fields = [path.split(".") for path in settings.pseudonym_fields]
        self._ip = settings.ip
        self._consent = {tenant: _allowed(one) for tenant, one in settings.consent.items()}

    @property
    def pseudonyms(self) -> bool:
        """Whether ids are replaced: then what cannot be read may not be kept either."""
        return bool(self._keys)

    def ids_of(self, tenant: str, user: str) -> list[str]:
        """What a user may be called downstream: their pseudonym under every key, newest first; else the id itself."""
        return [pseudonym(one, tenant, user) for one in self._keys] or [user]

    def clean(self, event: dict[str, Any], tenant: str) -> bool:
        """Change the event in place; whether anything was. Values of types that ids never have are left for admission."""
        changed = self._clean_ip(event)
        if self._keys:
            for name in IDS:
                value = event.get(name)
                if isinstance(value, str) and value:
                    event[name] = pseudonym(self._keys[0], tenant, value)
                    changed = True
            for path in self._fields:
                changed |= self._replace(event, path, tenant)
        default = self._consent.get(tenant)
        if default is not None:
            context = event.setdefault("context", {})
            if isinstance(context, dict) and context.get("consent") is None:
                context["consent"] = dict(default)
                changed = True
        return changed

    def _clean_ip(self, event: dict[str, Any]) -> bool:
        context = event.get("context")
        if self._ip == "keep" or not isinstance(context, dict) or "ip" not in context:
            return False
        given = context.pop("ip")
        shortened = truncated(given) if self._ip == "truncate" else None
        if shortened is not None:
            context["ip"] = shortened
        return True

    def _replace(self, event: dict[str, Any], path: list[str], tenant: str) -> bool:
        holder: Any = event
        for name in path[:-1]:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or holder.get(path[-1]) is None:
            return False
        value = holder[path[-1]]
        text = value if isinstance(value, str) else msgspec.json.encode(value, order="deterministic").decode()
        holder[path[-1]] = pseudonym(self._keys[0], tenant, text)
        return True


def pseudonym(secret: bytes, tenant: str, value: str) -> str:
    """
    >>> pseudonym(b"k" * 32, "shop", "u1")
    'pn_g5FSNtbdYlYik9g1m2FfTw'
    """
    message = f"{tenant}\x1f{value}".encode("utf-8", "surrogatepass")
    digest = hmac.digest(secret, message, hashlib.sha256)[:DIGEST_BYTES]
    return PREFIX + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def truncated(ip: Any) -> str | None:
    """The network of an address, None for what is no address.

    >>> truncated("203.0.113.77"), truncated("2001:db8:1:2::5"), truncated("localhost")
    ('203.0.113.0', '2001:db8:1::', None)
    """
    try:
        address = ipaddress.ip_address(ip) if isinstance(ip, str) else None
    except ValueError:
        return None
    if address is None:
        return None
    network = ipaddress.ip_network(f"{address}/{24 if address.version == 4 else 48}", strict=False)
    return str(network.network_address)


def _allowed(default: ConsentDefault) -> dict[str, bool]:
    return {"analytics": default.analytics, "personalization": default.personalization, "ads": default.ads, "assumed": True}
