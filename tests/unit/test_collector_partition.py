"""Every producer puts a key on the same partition."""

from __future__ import annotations

from aiokafka.partitioner import DefaultPartitioner as AioDefault
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

from producers.collector.broker import partition
from producers.kafka import partition_of


@given(st.binary(min_size=1, max_size=64), st.integers(1, 64))
def test_collector_and_file_producers_agree_with_both_clients_defaults(key: bytes, partitions: int) -> None:
    everything = list(range(partitions))
    chosen = partition_of(key, partitions)
    assert chosen == (murmur2(key) & 0x7FFFFFFF) % partitions
    assert chosen == AioDefault()(key, everything, everything)
    assert chosen == partition(key, everything, everything)


def test_known_values_of_the_java_client() -> None:
    assert partition_of(b"21", 1000) == (-973932308 & 0x7FFFFFFF) % 1000  # from Kafka's own UtilsTest
    assert partition_of(b"foobar", 1000) == (-790332482 & 0x7FFFFFFF) % 1000
