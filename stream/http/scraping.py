"""Who may read a process's metrics: who is on its machine, who has the key, and others where the settings say so by name.

Metrics hold no secret and nobody's data, yet tell how much a shop sells, and when it is down.
"""

from __future__ import annotations

from starlette.requests import Request

from stream.http import body, keys
from stream.http.answers import Refused
from stream.settings import LOOPBACK, Metrics


def refusal(host: str, own: Metrics) -> str | None:
    """Why a service that says its metrics where it listens may not do so on `host`; None when it may."""
    return None if host in LOOPBACK else own.missing


def refused(own: Metrics, peer: str, authorization: str, *, forwarded: bool) -> Refused | None:
    """A 401 unless `peer` may read. `forwarded`: a proxy passed it on, so the peer is not who asks, and who asks comes from
    where nobody is let in without the key."""
    if not forwarded and (peer in LOOPBACK or own.without_key):
        return None
    try:
        keys.tenant_of(body.basic(authorization), {} if own.key is None else {"metrics": own.key}, "metrics")
    except Refused as error:
        return error
    return None


def refused_of(request: Request, own: Metrics, *, behind_tls: bool = False) -> Refused | None:
    """The same of a request. `behind_tls`: a proxy is in front, and one on this machine need not say of whom it is."""
    headers, peer = request.headers, request.client.host if request.client else ""
    return refused(own, peer, headers.get("authorization", ""),
                   forwarded="x-forwarded-for" in headers or "forwarded" in headers or (behind_tls and peer in LOOPBACK))
