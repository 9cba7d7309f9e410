"""Items and their vectors."""

from __future__ import annotations

from typing import Annotated

import msgspec

from schemas.events import Id, Instant

TEXT_CHARS_MAX = 4_000  # MiniLM reads 256 tokens; the rest would only be carried around
UNENCODED = "unencoded"  # the space of items as they are, each with an empty vector: in use while nothing is released


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One catalog item on `clickwake.items.v1` (key `tenant/item_id`; a null value removes the item)."""

    item_id: Id
    tenant: Id
    title: Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)] = ""
    brand: str = ""
    category: str = ""
    description: Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)] = ""
    price: float | None = None
    url: str | None = None
    image_url: str | None = None
    in_stock: bool = True
    blocked: bool = False
    pinned: bool = False
    updated_at: Instant | None = None

    def text(self) -> str:
        """What the text encoder reads: title, brand, category, description.

        >>> Item(item_id="a", tenant="t", title="Red mug", category="Kitchen").text()
        'Red mug. Kitchen'
        """
        return ". ".join(part.strip() for part in (self.title, self.brand, self.category, self.description) if part.strip())


class ItemVector(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One item in one vector space, on `clickwake.item-vectors.v1` (key `space/tenant/item_id`), as MessagePack.

    It carries the item too, so that a reader needs one topic to rank and to apply the catalog's rules.
    `content_hash` is the hash of (space, text): equal hashes mean equal vectors, and nothing is encoded twice.
    An item without text has an empty vector, and so has every item in the space `UNENCODED`.
    """

    space: str
    content_hash: str
    vector: bytes  # float32 little-endian, (D,)
    item: Item
