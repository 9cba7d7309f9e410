"""`python -m workers.personalize`: one process of the personalize group; start more to share the partitions."""

from __future__ import annotations

from stream.adapters import faust_compat
from stream.adapters.logs import configure
from stream.settings import load
from stream.topology import create_app

if __name__ == "__main__":
    settings = load()
    configure(settings)
    faust_compat.run(create_app(settings))
