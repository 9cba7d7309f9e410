"""A bundle whose encoder is never asked: what judges links, counts and rhythms needs no training."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from schemas.release import FORMAT_VERSION, Manifest
from stream.core.ranking.links import Links
from stream.core.segments.audience import NO_AUDIENCE
from stream.core.survival.repurchase import Repurchase
from stream.core.user.featurize import FEATURE_VERSION


class WithoutEncoder:
    """A `stream.ports.Models` that knows links and, where something was learned of it, when items are bought again."""

    def __init__(self, model: Repurchase | None, links: Links) -> None:
        at = datetime.fromtimestamp(0, UTC)
        self.manifest = Manifest(
            format_version=FORMAT_VERSION, model_version="judged", parent=None, created_at=at,
            feature_version=FEATURE_VERSION, text_space="", text_dim=1, dim=1, events_max=1, blend={}, counts={}, churn={},
            data_from=at, data_to=at, metrics={}, files={}, repurchase=model.named() if model else {},
        )  # fmt: skip
        self.links = links
        self.learned: Mapping[str, Any] = {}
        self.audience = NO_AUDIENCE

    def adapt(self, text_vectors: Any, item_ids: list[str]) -> Any:
        return np.zeros((len(item_ids), self.manifest.dim), dtype=np.float32)

    def encode(self, arrays: Mapping[str, Any]) -> Any:
        raise AssertionError("this bundle has no encoder to ask")

    def survival(self, features: Any) -> Any:
        raise AssertionError("this bundle has no churn model to ask")

    def effects(self, features: Any) -> Any:
        raise AssertionError("this bundle knows of no deliveries")
