"""Offers on a real broker and engine, with a planted truth: two offers, of which buyers like one and others the other. What is
served learns it, through a worker that is killed and one that is taken over from; its log judges policies rightly."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.events import Event
from schemas.events import key as user_key
from schemas.offers import PlacementTotals
from schemas.outputs import Decision
from stream.adapters import clickhouse
from stream.adapters.kafka_clients import partition_of
from stream.adapters.offers import OffersReader
from stream.core.confidence import rate
from stream.core.offer_ledger import BITS, Ledger, revenue_micros
from stream.core.offer_policy import policy
from stream.core.state import UserState
from stream.partition import pack
from stream.settings import Settings
from tests.integration_support import api_of
from tests.support.cluster import Sender, read_all, running, start_worker, until
from tests.support.fakes import event
from training.off_policy import Log, judge

FILE = """
holdout: 0.1
placements: [{name: home, control: red, groups: {buyer: orders > 0}}]
offers:
  - {id: red, placements: [home], text: Red}
  - {id: blue, placements: [home], text: Blue}
  - {id: late, placements: [home], until: 2020-01-01T00:00:00Z}
  - {id: capped, placements: [home], when: orders > 5, budget: {impressions: 0}}
"""
ABOUT = [("*", f"offer={name}") for name in ("red", "blue", "late", "capped")]
TRUTH = {("red", False): 0.5, ("red", True): 0.1, ("blue", False): 0.1, ("blue", True): 0.5}
USERS, ROUNDS = 100, 9
