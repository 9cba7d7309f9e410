"""Every private name of Faust and aiokafka the transport leans on. A new version must fail here first, then be read.

When this fails: compare the named code of the new version with what `faust_transport`, `faust_thread`, `faust_compat`
and `global_reader` expect of it, run the other contract tests, then change the hash.
"""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import Fetcher, OffsetResetStrategy
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.producer.message_accumulator import MessageAccumulator, MessageBatch
from faust.app.base import App
from faust.tables.recovery import Recovery
from faust.transport import consumer, drivers
from faust.transport.drivers import aiokafka as driver
from mode.services import Service

from stream.adapters.faust import faust_compat, faust_thread, faust_transport

# what is overridden, called or relied on → the first 12 digits of the sha256 of its source
PINS: dict[str, tuple[Any, str]] = {
    "fetch loop": (consumer.Consumer._drain_messages, "44a2500309e8"),
    "Consumer.getmany": (consumer.Consumer.getmany, "4b168d84882a"),
    "Consumer._wait_next_records": (consumer.Consumer._wait_next_records, "6218e1969a63"),
    "Consumer.perform_seek": (consumer.Consumer.perform_seek, "0e8c130ff4b0"),
    "Consumer.force_commit": (consumer.Consumer.force_commit, "cc094614d22c"),
    "Consumer.wait_empty": (consumer.Consumer.wait_empty, "e4662fe24f09"),
    "Consumer.on_partitions_revoked": (consumer.Consumer.on_partitions_revoked, "d04b7ae72c6f"),
    "Consumer.on_partitions_assigned": (consumer.Consumer.on_partitions_assigned, "29ce96596f05"),
    "rebalance listener": (driver.ConsumerRebalanceListener, "f3d04f29dfb3"),
    "thread fetch": (driver.AIOKafkaConsumerThread._fetch_records, "39a2c6c79fc1"),
    "thread start": (driver.AIOKafkaConsumerThread.on_start, "38b4e8bd1e10"),
    "worker consumer": (driver.AIOKafkaConsumerThread._create_worker_consumer, "c2701bfc3e6f"),
    "App._on_partitions_revoked": (App._on_partitions_revoked, "d5c895bbe57d"),
    "App._on_partitions_assigned": (App._on_partitions_assigned, "de932b7927db"),
    "App._on_rebalance_when_stopped": (App._on_rebalance_when_stopped, "1b172d9af8ff"),
    "thread close": (driver.AIOKafkaConsumerThread.close, "d22efc59a1df"),
    "App._stop_consumer": (App._stop_consumer, "55854a5de12c"),
    "Recovery._wait": (Recovery._wait, "ec7429b70176"),
    "crash": (Service._crash, "7bc0c709a151"),
    "Recovery._resume_streams": (Recovery._resume_streams, "d986a6710c1a"),
    "to the coordinator": (GroupCoordinator._send_req, "fa4b12e914ce"),
    "idle time": (SubscriptionState.fetcher_idle_time.fget, "45289bef04d7"),
    "age of a batch": (MessageBatch.expired, "3b28f15f56f2"),
    "new batch": (MessageAccumulator.add_batch, "5ed1c5b1367a"),
    "heartbeat": (GroupCoordinator._do_heartbeat, "dc1d6632aaa6"),
    "commit": (GroupCoordinator._do_commit_offsets, "c3a3ea5613f3"),
    "rejoin": (GroupCoordinator.ensure_active_group, "33c84c1a9301"),
    "fetched_records": (Fetcher.fetched_records, "be4348896b9b"),
    "seek_to": (Fetcher.seek_to, "f0ba6aba6c22"),
    "request_offset_reset": (Fetcher.request_offset_reset, "e5bd8ba88386"),
    "failed coordination": (GroupCoordinator._push_error_to_user, "743ff515bd7e"),
    "coordination": (GroupCoordinator._GroupCoordinator__coordination_routine, "f814463c6b44"),
    "write": (inspect.unwrap(AIOKafkaConnection.send), "5909ea32f4ef"),
    "write of a password": (inspect.unwrap(AIOKafkaConnection._send_sasl_token), "7a3d948fc526"),
    "committed": (AIOKafkaConsumer.committed, "d8706147ab15"),
    "wait_on_metadata": (AIOKafkaClient._wait_on_metadata, "52b0a5ee78ef"),
}


def test_versions() -> None:
    assert (version("faust-streaming"), version("aiokafka")) == ("0.15.3", "0.14.0")


@pytest.mark.parametrize("name", PINS)
def test_the_code_we_lean_on_is_the_code_we_read(name: str) -> None:
    used, digest = PINS[name]
    assert hashlib.sha256(inspect.getsource(used).encode()).hexdigest()[:12] == digest, f"{name} changed: read it again"


def test_the_scheme_leads_to_our_transport() -> None:
    transport = drivers.by_url(f"{faust_compat.SCHEME}://127.0.0.1:9092")
    assert transport is faust_transport.Transport
    assert transport.Consumer is faust_transport.Consumer
    assert faust_thread.EARLIEST == OffsetResetStrategy.EARLIEST
    assert issubclass(faust_compat.App, faust.App)
