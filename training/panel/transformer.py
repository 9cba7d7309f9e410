"""SASRec and BERT4Rec in one small transformer: a switch for the loss, and by it for the direction."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from stream.core.user.featurize import Float32
from training.panel.method import Asked, Frozen, Ints, Past, histories
from training.panel.popularity import completed, recent
from training.panel.validation import HeldOut, held_out
from training.progress import progress

Loss = Literal["binary", "softmax", "masked"]
LENGTH = 50  # items of a sequence
WIDTH, HEADS, LAYERS, DROPOUT = 64, 2, 2, 0.2
BATCH = 128
LEARNING_RATE = 2e-3  # of Adam; constant, so that a run may be repeated up to any step
MASK_SHARE = 0.2  # of the items, at random; every other sequence has only its last one masked besides
FULL_SOFTMAX_ITEMS_MAX = 20_000
NEGATIVES = 4_096  # drawn for a batch where there are more items
CELLS_MAX = 2**26  # logits of a step: 256 MB
EPOCHS_MAX, STEPS_MIN = 200, 3_000  # where an epoch is a step or two, more of them
CHECK_STEPS_MIN = 40  # between two looks at validation; an epoch where that is longer
PATIENCE = 5  # looks without progress
PATIENCE_STEPS_MIN = 400  # BERT4Rec stands still for some hundred steps before it begins to learn
SEARCH_SHARE = 0.5  # of the budget for finding how long to train; the rest for training so long on everything
ASKED_AT_ONCE = 256
NAMES: dict[Loss, str] = {"binary": "SASRec", "softmax": "SASRec, full softmax", "masked": "BERT4Rec"}


class Net(nn.Module):
    """Item and position embeddings, pre-norm transformer layers; scores are products with the item embeddings."""

    def __init__(self, n_items: int, causal: bool) -> None:
        super().__init__()
        self.n_items, self.causal = n_items, causal
        self.pad, self.mask = n_items, n_items + 1
        self.items = nn.Embedding(n_items + 2, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(DROPOUT)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, DROPOUT, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    def forward(self, rows: Tensor) -> Tensor:
        """rows (B, L), filled up with `pad` at the end → (B, L, D)."""
        x = self.items(rows) * math.sqrt(WIDTH) + self.positions.weight[: rows.shape[1]]
        if self.causal:  # what is filled up comes later, so nobody sees it
            ahead = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool).triu(1)
            return self.layers(self.dropout(x), mask=ahead, is_causal=True)  # type: ignore[no-any-return]
        return self.layers(self.dropout(x), src_key_padding_mask=rows == self.pad)  # type: ignore[no-any-return]


class Transformer(Frozen):
    """binary: Kang & McAuley, "Self-attentive sequential recommendation" (ICDM 2018), one negative a positive.
    softmax: Klenitskiy & Vasilev, "Turning dross into gold loss" (RecSys 2023), the same network, cross-entropy over all
    items. masked: Sun et al., "BERT4Rec" (CIKM 2019), both directions, hidden items guessed, asked at a mask put last.

    How many steps to train is found on the last tenth of the past; then it is trained anew on everything for so long.
    """

    def __init__(self, loss: Loss) -> None:
        self.name, self.loss = NAMES[loss], loss

    def fit(self, past: Past, *, seed: int, budget_s: float, threads: int) -> None:
        torch.set_num_threads(threads)
        self._popular, started = recent(past), time.monotonic()
        with progress() as shown:
            held = held_out(past, seed)
            steps = self._train(held.earlier, seed, SEARCH_SHARE * budget_s, shown, held) if held is not None else None
            self.steps = self._train(past, seed, budget_s - (time.monotonic() - started), shown, steps=steps)

    def _train(
        self, past: Past, seed: int, budget_s: float, shown: Progress, held: HeldOut | None = None, steps: int | None = None
    ) -> int:
        """Train a new network, and say how many steps were best by `held`, or taken where there is nothing to judge by."""
        torch.manual_seed(seed)
        rng, started = np.random.default_rng(seed), time.monotonic()
        self._net = Net(past.n_items, causal=self.loss != "masked")
        optimizer = torch.optim.Adam(self._net.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
        windows = _windows(past, LENGTH if self.loss == "masked" else LENGTH + 1)
        epoch = -(-len(windows) // BATCH)
        planned, check = steps or max(STEPS_MIN, EPOCHS_MAX * epoch), max(epoch, CHECK_STEPS_MIN)
        patience = max(PATIENCE_STEPS_MIN, PATIENCE * check)
        task = shown.add_task(self.name, total=1.0)
        best, reached, step = 0, -np.inf, 0
        for step, rows in enumerate(_batches(windows, past.n_items, rng), 1):
            self._net.train()
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss_of(torch.from_numpy(rows), rng)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done = max(step / planned, (time.monotonic() - started) / max(budget_s, 1e-9))
            shown.update(task, completed=done, description=f"{self.name}, loss {float(loss.detach()):.3f}")
            if held is not None and (step % check == 0 or done >= 1):
                quality = held.quality(self.score(held.asked))
                best, reached = (step, quality) if quality > reached else (best, reached)
            if done >= 1 or (held is not None and step - best > patience):
                break
        shown.remove_task(task)
        return best if held is not None else step

    def _loss_of(self, rows: Tensor, rng: np.random.Generator) -> Tensor:
        """rows (B, L) of windows, filled up with `pad`."""
        net = self._net
        if self.loss == "masked":
            hidden = torch.from_numpy(_hidden((rows != net.pad).numpy(), rng))
            states, targets = net(rows.masked_fill(hidden, net.mask))[hidden], rows[hidden]  # (M, D), (M,)
        else:
            inputs, following = rows[:, :-1], rows[:, 1:]
            real = following != net.pad
            states, targets = net(inputs)[real], following[real]
            if self.loss == "binary":
                drawn, usable = _negatives(rows.numpy(), real.numpy(), net.n_items, rng)
                liked = (states * net.items(targets)).sum(1)
                others = (states * net.items(torch.from_numpy(drawn))).sum(1)[torch.from_numpy(usable)]
                return functional.softplus(-liked).mean() + functional.softplus(others).sum() / max(1, len(liked))
        return self._cross_entropy(states, targets, rng)

    def _cross_entropy(self, states: Tensor, targets: Tensor, rng: np.random.Generator) -> Tensor:
        """Over all items, or over the target and drawn ones that stand for all; states (M, D), targets (M,)."""
        items, n = self._net.items, self._net.n_items
        width = n if n <= FULL_SOFTMAX_ITEMS_MAX else NEGATIVES
        if len(targets) > CELLS_MAX // width:
            some = torch.from_numpy(rng.choice(len(targets), CELLS_MAX // width, replace=False))
            states, targets = states[some], targets[some]
        if n <= FULL_SOFTMAX_ITEMS_MAX:
            return functional.cross_entropy(states @ items.weight[:n].T, targets)
        drawn = torch.from_numpy(rng.integers(0, n, NEGATIVES))
        others = states @ items(drawn).T + math.log((n - 1) / NEGATIVES)  # (M, K): an unbiased sum over all others
        others = others.masked_fill(drawn[None, :] == targets[:, None], -torch.inf)
        logits = torch.cat([(states * items(targets)).sum(1, keepdim=True), others], dim=1)
        return functional.cross_entropy(logits, torch.zeros(len(targets), dtype=torch.long))

    @torch.no_grad()
    def score(self, asked: Sequence[Asked]) -> Float32:
        net = self._net.eval()
        scores = np.zeros((len(asked), net.n_items), dtype=np.float32)
        known = np.array([row for row, one in enumerate(asked) if len(one.items)], dtype=np.int64)
        for start in range(0, len(known), ASKED_AT_ONCE):
            part = known[start : start + ASKED_AT_ONCE]
            rows = [asked[row].items[-LENGTH:] if net.causal else np.append(asked[row].items[1 - LENGTH :], net.mask)
                    for row in part]  # fmt: skip
            last = torch.tensor([len(row) - 1 for row in rows])
            states = net(torch.from_numpy(_padded(rows, net.pad)))[torch.arange(len(rows)), last]  # (B, D)
            scores[part] = (states @ net.items.weight[: net.n_items].T).numpy()
        return completed(scores, self._popular)


def _windows(past: Past, length: int) -> list[Ints]:
    """Each user's items cut from the end into stretches of `length` that share one item: each is a target once."""
    found = []
    for one in histories(past):
        for stop in range(len(one.items), 1, 1 - length):
            found.append(one.items[max(0, stop - length) : stop])
    return found


def _padded(rows: Sequence[Ints], pad: int) -> Ints:
    """(B, L) of the longest."""
    full = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for at, row in enumerate(rows):
        full[at, : len(row)] = row
    return full


def _batches(windows: list[Ints], pad: int, rng: np.random.Generator) -> Iterator[Ints]:
    """Random batches (B, L) without end, of similar lengths within, so that little is filled up."""
    lengths = np.array([len(one) for one in windows], dtype=np.int64)
    while windows:
        order = rng.permutation(len(windows))
        order = order[np.argsort(lengths[order] // 8, kind="stable")]
        groups = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        for group in rng.permutation(len(groups)):
            yield _padded([windows[at] for at in groups[int(group)]], pad)


def _hidden(real: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which items to hide: (B, L). Half of the rows hide only their last one, as it will be asked."""
    hidden = real & (rng.random(real.shape) < MASK_SHARE)
    last = real.sum(1) - 1
    only_last = (rng.random(len(real)) < 0.5) | ~hidden.any(1)
    hidden[only_last] = False
    hidden[only_last, last[only_last]] = True
    return hidden


def _negatives(
    rows: Ints, real: npt.NDArray[np.bool_], n_items: int, rng: np.random.Generator
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """One item a target (M,), and whether it is none of its own row's (M,)."""
    drawn = rng.integers(0, n_items, real.shape)  # (B, L)
    own = (drawn[:, :, None] == rows[:, None, :]).any(2)
    return drawn[real], ~own[real]
