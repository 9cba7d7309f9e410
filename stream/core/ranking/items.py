"""Items as they come on their topic, and what makes two texts one."""

from __future__ import annotations

import hashlib

import msgspec

from schemas.catalog import Item
from schemas.dead_letter import Message
from schemas.unreadable import UNREADABLE
from stream.core.decode import Reject, message_of

_item = msgspec.json.Decoder(Item)


def content_hash(space: str, text: str) -> str:
    """Equal hashes mean equal vectors."""
    return hashlib.blake2b(f"{space}\x1f{text}".encode(), digest_size=16).hexdigest()


def decode(key: bytes | None, value: bytes | None) -> Item | Reject | None:
    """The item of a record, None for a removal, or why it is neither. Total: any bytes give a value.

    The key must name the same item as the value. Every worker splits keys at "/" to find the tenant, so a key that
    cannot be split would end all of them, and one that splits elsewhere would put an item into another tenant's shop.

    >>> decode(b"shop/mug", None) is None, decode(b"mug", None).messages[0].keyword
    (True, 'pattern')
    """
    try:
        tenant, _, item_id = (key or b"").decode().partition("/")
    except UnicodeDecodeError as error:
        return _reject("key", "encoding", f"the key is not UTF-8 at byte {error.start}")
    if not tenant or tenant.startswith("#") or not item_id:
        return _reject("key", "pattern", f"the key {key!r} is not tenant/item_id, or its tenant starts with #")
    if value is None:
        return None
    try:
        item = _item.decode(value)
    except msgspec.ValidationError as error:
        return Reject("undecodable", (message_of(error),))
    except UNREADABLE as error:
        return Reject("undecodable", (Message(path="", keyword="json", message=str(error)),))
    if (item.tenant, item.item_id) != (tenant, item_id):
        return _reject("key", "const", f"the key {key!r} names another item than the value, {item.tenant}/{item.item_id}")
    return item


def _reject(path: str, keyword: str, text: str) -> Reject:
    return Reject("unprocessable", (Message(path=path, keyword=keyword, message=text),))
