"""Ed25519 signatures over manifests and announcements (RFC 8032): who may say what workers run.

A manifest names every file of its folder with its sha256, so one signature over its bytes covers the bundle. It lies beside
it as `manifest.json.sig`, base64. Whoever trains holds the private key, CLICKWAKE_MODELS__SIGNING_KEY; workers hold public
keys, CLICKWAKE_MODELS__VERIFY_KEYS, several while keys are changed. With any key set, what is not signed is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from stream.settings import Models

SIGNATURE = "manifest.json.sig"
MANIFEST = b"clickwake manifest 1\n"  # signed before the content: a signature made for anything else is none here
RECEIPT = b"clickwake receipt 1\n"
ANNOUNCEMENT = b"clickwake announcement 1\n"
KEY_BYTES = 32


class SignatureRefused(ValueError):
    """A manifest is not signed by a trusted key; the message says in what way."""


class UnusableKey(ValueError):
    """A setting holds no key; the message names the setting, never the key."""


@dataclass(frozen=True)
class PublicKey:
    """A key that is trusted. `text` is what the setting takes."""

    text: str

    @property
    def id(self) -> str:
        """Short and fit for logs."""
        return hashlib.sha256(_bytes_of(self.text, "the public key")).hexdigest()[:12]

    def made(self, signature: bytes, content: bytes, kind: bytes = MANIFEST) -> bool:
        """Whether this key made the signature of that content, as what it is."""
        try:
            Ed25519PublicKey.from_public_bytes(_bytes_of(self.text, "the public key")).verify(signature, kind + content)
        except InvalidSignature:
            return False
        return True


Keys = tuple[PublicKey, ...]


class Signer:
    """Holds the private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> PublicKey:
        return PublicKey(base64.b64encode(self._key.public_key().public_bytes_raw()).decode())

    def sign(self, content: bytes, kind: bytes = MANIFEST) -> bytes:
        """The contents of `manifest.json.sig`, or the signature of a receipt or an announcement."""
        return base64.b64encode(self._key.sign(kind + content)) + b"\n"


def signer(models: Models) -> Signer | None:
    """The private key of the settings, if there is one. Raises `UnusableKey`."""
    if models.signing_key is None:
        return None
    raw = _setting(models.signing_key.get_secret_value(), "CLICKWAKE_MODELS__SIGNING_KEY")
    return Signer(Ed25519PrivateKey.from_private_bytes(raw))


def trusted(models: Models) -> Keys:
    """Whose signatures count: the public keys of the settings, and the one that belongs to the private key. Empty: nobody
    is asked for a signature. Raises `UnusableKey`."""
    raw = [_setting(one, "CLICKWAKE_MODELS__VERIFY_KEYS") for one in models.verify_keys]
    keys = [PublicKey(base64.b64encode(one).decode()) for one in raw]
    own = signer(models)
    return tuple(dict.fromkeys([*keys, own.public] if own else keys))


def check(content: bytes, signature: bytes, keys: Keys, kind: bytes = MANIFEST) -> PublicKey:
    """The trusted key that signed a manifest, or what `kind` says. Raises `SignatureRefused`."""
    try:
        raw = base64.b64decode(signature.strip(), validate=True)
    except binascii.Error as error:
        raise SignatureRefused(f"{SIGNATURE if kind == MANIFEST else 'the signature'} is unreadable: {error}") from error
    for key in keys:
        if key.made(raw, content, kind):
            return key
    known = ", ".join(key.id for key in keys)
    raise SignatureRefused(f"signed by none of the trusted keys ({known}), or changed after it was signed")


def keygen(path: Path) -> PublicKey:
    """Write a new private key to a file that only its owner can read; returns the public key.

    Raises FileExistsError rather than replace a key.
    """
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(base64.b64encode(key.private_bytes_raw()) + b"\n")
    return Signer(key).public


def _setting(value: str, name: str) -> bytes:
    """A key given as base64, or as the path of a file that holds it so."""
    path = Path(value)
    try:
        held = path.read_text() if len(value) < 4_096 and path.is_file() else value
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableKey(f"{name} names {value}, which cannot be read: {type(error).__name__}") from error
    return _bytes_of(held, name)


def _bytes_of(text: str, name: str) -> bytes:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnusableKey(f"{name} is neither a file nor base64; clickwake models keygen makes a pair of keys") from error
    if len(raw) != KEY_BYTES:
        raise UnusableKey(f"{name} holds {len(raw)} bytes, a key has {KEY_BYTES}; clickwake models keygen makes keys")
    return raw
