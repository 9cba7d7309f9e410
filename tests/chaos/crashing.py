"""`python -m tests.chaos.crashing WORKER POINT N [stop]`: a worker process that is gone at a point, as by kill -9, the N-th
time it comes there; with `stop` it falls asleep there, as by SIGSTOP. The worker's code is as it is.

Points follow the numbered steps of `stream/partition.py` and `workers/sink.py`: `2` is right after step 2, `5-` right
before what step 5 sends is acknowledged, and so on.
"""

from __future__ import annotations

import functools
import inspect
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest

from schemas import topics
from schemas.topics import Topic
from stream.adapters.faust.faust_batches import RecordBatch
from stream.adapters.state.state_store import PartitionStore
from stream.outbox import Outbox, OutRecord
from stream.partition import PartitionState
from stream.personalize import Personalizer
from stream.sink import consumer
from stream.sink.consumer import Sink
from stream.sink.writer import Writer
from stream.topology import KafkaOutputs

PERSONALIZE = ("1", "2", "3", "4", "5", "6 counts", "6 changelog-", "6 changelog network", "6 changelog", "6 store-",
               "6 store", "7")  # fmt: skip
SINK = ("1", "2", "3 first insert", "3", "4", "5-", "5")


class Countdown:
    """Ends the process, or stops it, at the n-th call."""

    def __init__(self, calls: int, number: signal.Signals) -> None:
        self.left, self.number = calls, number

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


Watch = Callable[..., None]


def nothing(*arguments: Any) -> None:
    """Goes on."""


def around(owner: Any, name: str, *, before: Watch = nothing, after: Watch = nothing) -> None:
    """Call `before` and `after` with the arguments of every call of a method or function, which may be a coroutine."""
    original = getattr(owner, name)
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def wrapped(*arguments: Any, **named: Any) -> Any:
            before(*arguments)
            found = await original(*arguments, **named)
            after(*arguments)
            return found
    else:

        @functools.wraps(original)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            before(*arguments)
            found = original(*arguments, **named)
            after(*arguments)
            return found

    setattr(owner, name, wrapped)


def _personalize(point: str, gone: Countdown) -> None:
    def sent(to: Topic) -> Callable[..., None]:
        def check(outputs: KafkaOutputs, topic: Topic, records: dict[int, list[OutRecord]]) -> None:
            if topic is to:
                gone()

        return check

    def decided(personalizer: Personalizer, part: PartitionState, outbox: Outbox) -> None:
        if outbox.records:
            gone()

    def noticed(outputs: KafkaOutputs, topic: Topic, records: dict[int, list[OutRecord]]) -> None:
        if not outputs.app._speaking:  # nobody else is refused for it, and ends the process
            sent(topics.ITEM_COUNTS)(outputs, topic, records)
        while gone.left == 0 and outputs.app.consumer.generation >= 0:  # the thread of the consumer goes on meanwhile
            time.sleep(0.01)

    def written(client: AIOKafkaClient, node_id: int, request: Any) -> None:
        if isinstance(request, ProduceRequest) and any(name.endswith(topics.STATE.name("")) for name, _ in request._topics):
            gone()

    def quiet(*arguments: Any) -> None:
        gone()

    {
        "1": lambda: around(Personalizer, "process", before=quiet),
        "2": lambda: around(Personalizer, "_decode", after=quiet),
        "3": lambda: around(Personalizer, "_fold", after=quiet),
        "4": lambda: around(Personalizer, "send", before=decided),
        "5": lambda: around(Personalizer, "send", after=decided),
        "6 counts": lambda: around(KafkaOutputs, "send", after=sent(topics.ITEM_COUNTS)),
        "6 changelog-": lambda: around(KafkaOutputs, "send", before=sent(topics.STATE)),
        "6 counts- noticed": lambda: around(KafkaOutputs, "send", before=noticed),  # goes on when its membership is gone
        "6 changelog network": lambda: around(AIOKafkaClient, "send", before=written),  # all has been asked that is asked
        "6 changelog": lambda: around(KafkaOutputs, "send", after=sent(topics.STATE)),
        "6 store-": lambda: around(PartitionStore, "write", before=quiet),
        "6 store": lambda: around(PartitionStore, "write", after=quiet),
        "7": lambda: around(RecordBatch, "ack", after=quiet),
    }[point]()


def _sink(point: str, gone: Countdown) -> None:
    def quiet(*arguments: Any) -> None:
        gone()

    {
        "1": lambda: around(Sink, "_store", before=quiet),
        "2": lambda: around(consumer, "freeze", after=quiet),
        "3 first insert": lambda: around(Writer, "_insert", after=quiet),
        "3": lambda: around(Writer, "write", after=quiet),
        "4": lambda: around(Sink, "_reject", after=quiet),
        "5-": lambda: around(Sink, "_commit", before=quiet),
        "5": lambda: around(Sink, "_commit", after=quiet),
    }[point]()


if __name__ == "__main__":
    worker, where, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
    number = signal.SIGSTOP if sys.argv[4:] == ["stop"] else signal.SIGKILL
    {"personalize": _personalize, "sink": _sink}[worker](where, Countdown(times, number))
    sys.argv = [f"workers.{worker}"]
    runpy.run_module(f"workers.{worker}", run_name="__main__")
