"""`python -m workers.personalize`: one process of the personalize group; start more to share the partitions."""

from __future__ import annotations

import gc

from stream.adapters.faust import faust_compat
from stream.logs import configure
from stream.settings import load
from stream.topology import create_app

# States are trees that reference counting frees; walking hundreds of thousands of them over and over for cycles that are
# not there took a fifth of folding.
GC_THRESHOLDS = (100_000, 20, 50)

if __name__ == "__main__":
    gc.set_threshold(*GC_THRESHOLDS)
    settings = load()
    configure(settings)
    faust_compat.run(create_app(settings))
