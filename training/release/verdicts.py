"""Why a bundle was released or kept as a candidate: `verdict.json` beside it, for `clickwake models` and for rollback.

It is not part of the bundle: the manifest does not name it, and workers do not read it.
"""

from __future__ import annotations

import msgspec
import structlog

from schemas.release import Verdict
from schemas.unreadable import UNREADABLE
from stream.adapters.models import model_store

log = structlog.get_logger()
_verdict = msgspec.json.Decoder(Verdict)


def write(registry: str, verdict: Verdict) -> None:
    """Keep it; one that was there is replaced."""
    fs, path = model_store.opened(_uri(registry, verdict.model_version))
    fs.pipe_file(path, msgspec.json.format(msgspec.json.encode(verdict), indent=2))


def read(registry: str, version: str) -> Verdict | None:
    """None when nobody judged the bundle, or what lies there is unreadable, which is logged."""
    fs, path = model_store.opened(_uri(registry, version))
    try:
        return _verdict.decode(fs.cat_file(path))
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        log.warning("verdict unreadable", model_version=version, why=str(error))
        return None


def kept(registry: str, version: str) -> str | None:
    """Why a bundle was not released; None when it was, or nobody judged it."""
    verdict = read(registry, version)
    return None if verdict is None or verdict.released else verdict.reason


def _uri(registry: str, version: str) -> str:
    return f"{model_store.bundle_uri(registry, version)}/verdict.json"
