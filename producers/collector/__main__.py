"""`python -m producers.collector`."""

from __future__ import annotations

import sys

from producers.collector.serve import main

sys.exit(main())
