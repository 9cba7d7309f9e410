"""With a key set, workers take what a trusted key has signed and refuse everything else, each attack with its reason."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr
from typer.testing import CliRunner

from clickwake.cli import app
from schemas.release import FileEntry, Manifest, ModelRelease
from stream.adapters.models import model_store, signing
from stream.adapters.models.model_store import BundleRefused, TextModel
from stream.adapters.models.onnx import sha256
from stream.adapters.models.signing import SIGNATURE, Keys, Signer
from stream.settings import Models, Settings
from tests.support import bundles
from tests.support.bundles import SPACE, TEXT_DIM, Exported
from training.release import release as releases


def new_signer() -> Signer:
    return Signer(Ed25519PrivateKey.generate())


def private(signer: Signer) -> SecretStr:
    return SecretStr(base64.b64encode(signer._key.private_bytes_raw()).decode())


class Here(NamedTuple):
    """A registry with a signed text encoder and a signed bundle that was trained with it."""

    registry: Path
    signer: Signer
    manifest: Manifest
    made: Exported

    @property
    def keys(self) -> Keys:
        return (self.signer.public,)

    @property
    def bundle(self) -> Path:
        return self.registry / "bundles" / self.manifest.model_version

    @property
    def text(self) -> Path:
        return self.registry / "text" / SPACE

    def load(self, **announced: str) -> None:
        """What a worker does with an announcement that fits the manifest as it now is."""
        raw = (self.bundle / "manifest.json").read_bytes()
        release = ModelRelease(model_version=self.manifest.model_version, uri=f"bundles/{self.manifest.model_version}",
                               manifest_sha256=sha256(raw), released_at=self.manifest.created_at)  # fmt: skip
        model_store.load(str(self.registry), msgspec.structs.replace(release, **announced), keys=self.keys)


def put_text_encoder(registry: Path, signer: Signer | None, space: str = SPACE, tokenizer: bytes = b"{}") -> None:
    model = TextModel(space=space, dim=TEXT_DIM, tokens_max=256,
                      files={"model.onnx": sha256(b"graph"), "tokenizer.json": sha256(tokenizer)})  # fmt: skip
    raw = msgspec.json.encode(model)
    files = {"model.onnx": b"graph", "tokenizer.json": tokenizer, "manifest.json": raw}
    model_store.write_files(f"{registry}/text/{space}", files | ({SIGNATURE: signer.sign(raw)} if signer else {}))


@pytest.fixture
def here(tmp_path: Path, exported: Exported) -> Here:
    signer = new_signer()
    put_text_encoder(tmp_path, signer)
    manifest = bundles.publish(str(tmp_path), exported)
    found = Here(tmp_path, signer, manifest, exported)
    model_store.sign(str(found.bundle), (found.bundle / "manifest.json").read_bytes(), signer)
    return found


def test_what_a_trusted_key_signed_is_taken_and_the_manifest_names_the_tokenizer(here: Here) -> None:
    here.load()
    assert here.manifest.tokenizer_sha256 == sha256(b"{}")
    assert model_store.newest_text_space(str(here.registry), here.keys) == SPACE


def unsigned(here: Here) -> None:
    (here.bundle / SIGNATURE).unlink()


def another_key(here: Here) -> None:
    model_store.sign(str(here.bundle), (here.bundle / "manifest.json").read_bytes(), new_signer())


def another_manifest(here: Here) -> None:
    """A policy changed after signing; hashes and announcement fit."""
    changed = msgspec.structs.replace(here.manifest, churn={**here.manifest.churn, "raise_at": 0.1})
    (here.bundle / "manifest.json").write_bytes(msgspec.json.encode(changed))


def another_model(here: Here) -> None:
    """A file swapped, its hash put into the manifest."""
    (here.bundle / "churn.onnx").write_bytes(b"evil")
    files = here.manifest.files | {"churn.onnx": FileEntry(sha256=sha256(b"evil"), bytes=4)}
    (here.bundle / "manifest.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(here.manifest, files=files)))


def another_model_alone(here: Here) -> None:
    (here.bundle / "churn.onnx").write_bytes(b"evil")


def signature_of_another_bundle(here: Here) -> None:
    other = bundles.publish(str(here.registry), here.made, seed=5)
    raw = (here.registry / "bundles" / other.model_version / "manifest.json").read_bytes()
    (here.bundle / SIGNATURE).write_bytes(here.signer.sign(raw))


def signature_for_another_purpose(here: Here) -> None:
    """The key signed these very bytes, but not as a manifest."""
    raw = (here.bundle / "manifest.json").read_bytes()
    (here.bundle / SIGNATURE).write_bytes(base64.b64encode(here.signer._key.sign(raw)))


def no_signature_at_all(here: Here) -> None:
    (here.bundle / SIGNATURE).write_bytes(b"\x00 trust me")


def another_tokenizer(here: Here) -> None:
    put_text_encoder(here.registry, here.signer, tokenizer=b'{"other": 1}')


def unsigned_text_encoder(here: Here) -> None:
    (here.text / SIGNATURE).unlink()


def text_encoder_of_another_space(here: Here) -> None:
    raw = json.dumps(json.loads((here.text / "manifest.json").read_bytes()) | {"space": "elsewhere"}).encode()
    (here.text / "manifest.json").write_bytes(raw)
    (here.text / SIGNATURE).write_bytes(here.signer.sign(raw))


ATTACKS: dict[Callable[[Here], None], str] = {
    unsigned: "is not signed: there is no manifest.json.sig",
    another_key: "by none of the trusted keys",
    another_manifest: "changed after it was signed",
    another_model: "changed after it was signed",
    another_model_alone: "churn.onnx is damaged",
    signature_of_another_bundle: "changed after it was signed",
    signature_for_another_purpose: "by none of the trusted keys",
    no_signature_at_all: "manifest.json.sig is unreadable",
    another_tokenizer: "expects another text encoder than the registry holds",
    unsigned_text_encoder: "text/tiny is not signed",
    text_encoder_of_another_space: "holds the text encoder of space elsewhere",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attacks_are_refused(here: Here, attack: Callable[[Here], None]) -> None:
    attack(here)
    with pytest.raises(BundleRefused, match=ATTACKS[attack]):
        here.load()


def test_a_signed_bundle_under_another_name_is_refused(here: Here) -> None:
    with pytest.raises(BundleRefused, match="announced was newer"):
        here.load(model_version="newer")


def test_clickwake_release_refuses_before_anything_is_announced(here: Here, capsys: Any) -> None:
    unsigned(here)
    settings = Settings(models=Models(registry=str(here.registry), verify_keys=(here.signer.public.text,)))
    with pytest.raises(BundleRefused, match="is not signed"):
        releases.release(settings, here.manifest.model_version)  # no broker runs: it would be unreachable


def test_an_unsigned_text_encoder_does_not_keep_the_catalog_from_the_signed_one(here: Here) -> None:
    put_text_encoder(here.registry, None, space="newer")
    assert model_store.newest_text_space(str(here.registry), here.keys) == SPACE
    assert model_store.newest_text_space(str(here.registry)) == "newer"
    with pytest.raises(BundleRefused, match="text/newer is not signed"):
        model_store.load_text_encoder(str(here.registry), "newer", keys=here.keys)


def test_keys_are_changed_one_after_the_other(here: Here) -> None:
    version, old, new = here.manifest.model_version, here.signer.public, new_signer()
    both = Models(registry=str(here.registry), signing_key=private(new), verify_keys=(old.text,))
    assert signing.trusted(both) == (old, new.public)
    assert releases.sign_again(Settings(models=both), version) == new.public
    raw = (here.bundle / "manifest.json").read_bytes()
    model_store.admit(str(here.registry), str(here.bundle), raw, keys=(new.public,))
    with pytest.raises(BundleRefused, match="by none of the trusted keys"):
        model_store.admit(str(here.registry), str(here.bundle), raw, keys=here.keys)


def test_nothing_is_signed_that_nobody_vouches_for(here: Here) -> None:
    new = Models(registry=str(here.registry), signing_key=private(new_signer()))
    with pytest.raises(BundleRefused, match="by none of the trusted keys"):
        releases.sign_again(Settings(models=new), here.manifest.model_version)
    releases.sign_again(Settings(models=new), here.manifest.model_version, trust=True)
    with pytest.raises(signing.UnusableKey, match="nothing to sign with"):
        releases.sign_again(Settings(models=Models(registry=str(here.registry))), here.manifest.model_version)


def test_a_manifest_changed_between_publishing_and_signing_is_not_signed(here: Here) -> None:
    written = sha256((here.bundle / "manifest.json").read_bytes())
    settings = Settings(models=Models(registry=str(here.registry), signing_key=private(here.signer)))
    assert releases.sign_new(settings, here.manifest.model_version, written) == here.signer.public
    another_manifest(here)
    with pytest.raises(BundleRefused, match="was changed after it was published"):
        releases.sign_new(settings, here.manifest.model_version, written)
    assert releases.sign_new(Settings(models=Models(registry=str(here.registry))), here.manifest.model_version, "") is None


@pytest.mark.parametrize("value", ["not base64!", base64.b64encode(b"short").decode(), "A" * 44])
def test_an_unusable_key_is_named_and_not_shown(value: str) -> None:
    for models in (Models(signing_key=SecretStr(value)), Models(verify_keys=(value,))):
        with pytest.raises(signing.UnusableKey, match="CLICKWAKE_MODELS__") as caught:
            signing.trusted(models)
        assert value not in str(caught.value)


def test_keygen_writes_a_private_file_once_and_prints_what_to_set(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.key"
    made = CliRunner().invoke(app, ["models", "keygen", "--out", str(path), "--json"])
    assert made.exit_code == 0, made.output
    said = json.loads(made.stdout)
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text().strip() not in made.output
    signer = signing.signer(Models(signing_key=SecretStr(str(path))))
    assert signer is not None and signer.public.text == said["verify_key"] and signer.public.id == said["id"]
    again = CliRunner().invoke(app, ["models", "keygen", "--out", str(path)])
    assert again.exit_code == 1


def test_models_says_who_signed_what(here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = bundles.publish(str(here.registry), here.made, seed=5)
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLICKWAKE_MODELS__REGISTRY", str(here.registry))
    monkeypatch.setenv("CLICKWAKE_MODELS__VERIFY_KEYS", json.dumps([here.signer.public.text]))
    monkeypatch.setattr(releases, "current", lambda settings: None)
    said = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert {one["model_version"]: one["signed_by"] for one in said["bundles"]} == {
        here.manifest.model_version: here.signer.public.id, other.model_version: None,
    }  # fmt: skip
