"""A text encoder adapted to a catalog: what its words mean there, and what goes together there.

1 masked language modelling on the texts of items (Devlin et al., "BERT", 2018, section 3.1); 2 contrastive learning: texts
of two items that one user touched together are drawn to each other and away from the others of the batch, in both
directions (InfoNCE: van den Oord et al., "Contrastive Predictive Coding", 2018, eq. 4). Word vectors stay as they are in
step 2, or words that no item has would lose their place. Whether it helps is for `evaluate text` to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from stream.core.user.state import DAY_MS
from training.history.snapshot import History, interactions
from training.panel.method import Past
from training.progress import progress, share_done
from training.text.text_encoder import Pooled, TextModelRefused, hidden_states, load_bert
from training.text.tokens import Ints, Tokens, fast_type

TOKENS_MAX = 64  # of an item's text while adapting; attention costs by the square
MASK_SHARE = 0.15
TOGETHER_MAX = 10  # touches between two that count as together
TOGETHER_MS = DAY_MS


@dataclass(frozen=True)
class Recipe:
    """How an encoder is adapted."""

    masked_epochs: float = 2.0
    masked_batch: int = 64
    masked_rate: float = 5e-5
    pairs: int = 40_000
    pair_batch: int = 96
    pair_rate: float = 1e-4
    temperature: float = 0.05
    warmup: float = 0.1


RECIPE = Recipe()


def pairs_of(past: Past, count: int, rng: np.random.Generator) -> Ints:
    """(P, 2) item columns: drawn touches with a later touch of the same user, at most TOGETHER_MAX later and within a day,
    of another item. Fewer than `count` when users seldom touch two items together."""
    order = np.lexsort((past.ts_ms, past.users))
    users, items, ts_ms = past.users[order], past.items[order], past.ts_ms[order]
    at = rng.integers(0, max(1, len(order)), 4 * count) if len(order) else np.zeros(0, dtype=np.int64)
    other = np.minimum(at + rng.integers(1, TOGETHER_MAX + 1, len(at)), len(order) - 1)
    fits = (users[at] == users[other]) & (ts_ms[other] - ts_ms[at] <= TOGETHER_MS) & (items[at] != items[other])
    return np.stack([items[at[fits]], items[other[fits]]], axis=1)[:count]


def lessons(history: History, until_ms: int, seed: int, recipe: Recipe = RECIPE) -> tuple[list[str], Ints]:
    """(texts of the history's items, empty for one nobody touched before `until_ms`; pairs (P, 2) of places in them)."""
    past, _ = interactions(history, until_ms)
    touched = set(past.items.tolist())
    texts = [item.text() if at in touched else "" for at, item in enumerate(history.items.values())]
    return texts, pairs_of(past, recipe.pairs, np.random.default_rng(seed))


def adapt(
    folder: Path, texts: list[str], pairs: Ints, *, seed: int, budget_s: float, threads: int = 1, recipe: Recipe = RECIPE,
    say: Callable[[str], None] = lambda message: None,
) -> Any:  # fmt: skip
    """The BERT of a folder after both steps; `pairs` (P, 2) are places in `texts`. An empty text is left out.

    Rates fall to nothing over the planned steps or `budget_s` seconds, a third of it for step 1, whichever ends first.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokens = Tokens.of(texts, folder, TOKENS_MAX)
    spoken = np.array([bool(text) for text in texts])
    bert = _masked(folder, tokens, np.flatnonzero(spoken), rng, budget_s / 3, recipe, say)
    some = pairs[spoken[pairs].all(axis=1)]
    if len(some):
        _contrast(bert, tokens, some, _number_of(texts), rng, budget_s * 2 / 3, recipe, say)
    return bert.eval()


def _masked(
    folder: Path, tokens: Tokens, spoken: Ints, rng: np.random.Generator, budget_s: float, recipe: Recipe,
    say: Callable[[str], None],
) -> Any:  # fmt: skip
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size, hidden_word = tokenizer.get_vocab_size(), tokenizer.token_to_id("[MASK]")
    if hidden_word is None:
        raise TextModelRefused(f"{folder}/tokenizer.json has no [MASK]: only a BERT can be adapted")
    model = load_bert(folder, masked_words=True)
    steps = max(1, round(recipe.masked_epochs * len(spoken) / recipe.masked_batch))
    chosen = Tokens([tokens.ids[at] for at in spoken], tokens.lengths[spoken])

    def losses() -> Iterator[Tensor]:
        while True:
            for at in chosen.batches(recipe.masked_batch, rng):
                ids, mask, kinds = chosen.padded(at)
                words = (mask > 0) & (functional.pad(mask, (0, 1))[:, 1:] > 0)  # without [SEP], the last
                words[:, 0] = False  # and [CLS], the first
                hide = torch.from_numpy(rng.random(tuple(ids.shape)) < MASK_SHARE) & words
                if not hide.any():
                    continue
                how = torch.from_numpy(rng.random(tuple(ids.shape)))
                seen = torch.where(hide & (how < 0.8), hidden_word, ids)
                drawn = torch.from_numpy(rng.integers(0, size, tuple(ids.shape)))
                seen = torch.where(hide & (how >= 0.9), drawn, seen)
                with torch.autocast("cpu", fast_type(), enabled=fast_type() is not None):
                    hidden = hidden_states(model.base_model, seen, mask, kinds)  # (B, L, T)
                    logits = model.cls(hidden[hide])  # (M, V)
                yield functional.cross_entropy(logits.float(), ids[hide])

    _descend(model, losses(), steps, budget_s, recipe.masked_rate, recipe.warmup, "masked words", say)
    return model.base_model


def _contrast(
    bert: Any, tokens: Tokens, pairs: Ints, number: Ints, rng: np.random.Generator, budget_s: float, recipe: Recipe,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    bert.embeddings.requires_grad_(False)
    model = Pooled(bert)
    steps = max(1, len(pairs) // recipe.pair_batch)

    def losses() -> Iterator[Tensor]:
        while True:
            order = rng.permutation(len(pairs))
            for start in range(0, steps * recipe.pair_batch, recipe.pair_batch):
                some = pairs[order[start : start + recipe.pair_batch]]  # (B, 2)
                with torch.autocast("cpu", fast_type(), enabled=fast_type() is not None):
                    vectors = model(*tokens.padded(some.T.ravel())).float()  # (2B, T)
                left, right = vectors[: len(some)], vectors[len(some) :]
                logits = left @ right.T / recipe.temperature  # (B, B)
                same = torch.from_numpy(number[some[:, 0]][:, None] == number[some[:, 1]][None, :])
                twice = torch.from_numpy(number[some[:, 1]][:, None] == number[some[:, 1]][None, :])
                own = torch.eye(len(some), dtype=torch.bool)
                logits = logits.masked_fill((same | twice) & ~own, -1e9)  # an item is no stranger to itself
                answers = torch.arange(len(some))
                yield (functional.cross_entropy(logits, answers) + functional.cross_entropy(logits.T, answers)) / 2

    _descend(model, losses(), steps, budget_s, recipe.pair_rate, recipe.warmup, "texts that go together", say)


def _descend(
    model: torch.nn.Module, losses: Iterator[Tensor], steps: int, budget_s: float, rate: float, warmup: float, name: str,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], weight_decay=0.01)
    started, done, seen = time.monotonic(), 0.0, []
    model.train()
    with progress() as shown:
        task = shown.add_task(name, total=1.0)
        while done < 1.0:
            loss = next(losses)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (done + 1 / steps) / warmup, (1.0 - done) / (1.0 - warmup))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seen.append(float(loss.detach()))
            done = share_done(len(seen), steps, time.monotonic() - started, budget_s)
            shown.update(task, completed=done, description=f"{name}, loss {np.mean(seen[-20:]):.3f}")
    first, last = np.mean(seen[:20]), np.mean(seen[-20:])
    say(f"{name}: {len(seen)} of {steps} steps in {time.monotonic() - started:.0f} s, loss {first:.3f} → {last:.3f}")
    model.eval()


def _number_of(texts: list[str]) -> Ints:
    """Equal texts have equal numbers."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int64)


def save(bert: Any, source: Path, folder: Path) -> None:
    """A Hugging Face folder that can take the source's place by CLICKWAKE_TRAINING__TEXT_MODEL."""
    folder.mkdir(parents=True, exist_ok=True)
    bert.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())
