"""What msgspec's decoders raise for bytes that are not what they should be: all of it, where bytes come from elsewhere."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
