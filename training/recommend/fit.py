"""Training of the recommender on moments: seeded, shown, and within a time budget."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional

from stream.core.user.featurize import HOUR_MS, Float32
from training.checkpoint import Checkpoint
from training.history.snapshot import Moment
from training.progress import progress, share_done
from training.recommend.user_encoder import Config, Recommender

BATCH = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
EPOCHS_MAX = 15
PATIENCE = 3  # checks on validation without progress before training ends
CHECKS_PER_RUN = 12
TARGETS_PER_STEP = 16  # of one moment, drawn anew each time
FULL_SOFTMAX_ITEMS_MAX = 20_000  # above this the loss is over the batch's targets and drawn negatives
NEGATIVES = 8_192
VALIDATION_SHARE = 0.1  # the latest moments
VALIDATION_MAX = 2_000
WARMUP_STEPS = 50
MASK_SHARE = 0.25  # of the items in pre-training


@dataclass(frozen=True)
class Arrays:
    """Moments as arrays; `rows` is -1 where there is nothing. Histories are left-aligned, as in `featurize.batch`."""

    rows: npt.NDArray[np.int32]  # (E, L)
    kinds: npt.NDArray[np.int8]  # (E, L)
    ts_ms: npt.NDArray[np.int64]  # (E, L)
    now_ms: npt.NDArray[np.int64]  # (E,) time of the targets
    targets: npt.NDArray[np.int32]  # (E, T)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, at: npt.NDArray[np.int64] | slice) -> Arrays:
        return Arrays(self.rows[at], self.kinds[at], self.ts_ms[at], self.now_ms[at], self.targets[at])


@dataclass
class Curve:
    """What training saw, for the report."""

    loss: list[float] = field(default_factory=list)  # of each step
    check_steps: list[int] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = ""
    best_step: int = 0  # 0: never judged
    checks: int = 0  # of the CHECKS_PER_RUN that were due


def arrays(moments: list[Moment], row_of: dict[str, int], config: Config) -> Arrays:
    """Moments in their order; items the catalog does not know are left out."""
    size, length = len(moments), config.events_max
    width = max((len(one.targets) for one in moments), default=1)
    rows = np.full((size, length), -1, dtype=np.int32)
    kinds = np.zeros((size, length), dtype=np.int8)
    ts_ms = np.zeros((size, length), dtype=np.int64)
    targets = np.full((size, width), -1, dtype=np.int32)
    for at, one in enumerate(moments):
        n = len(one.history.item_ids)
        rows[at, :n] = [row_of.get(item, -1) for item in one.history.item_ids]
        kinds[at, :n] = one.history.kinds
        ts_ms[at, :n] = one.history.ts_ms
        targets[at, : len(one.targets)] = [row_of.get(item, -1) for item in one.targets]
    return Arrays(rows, kinds, ts_ms, np.array([one.ts_ms for one in moments], dtype=np.int64), targets)


def fit(
    moments: list[Moment], item_ids: list[str], text: Float32, config: Config,
    *, seed: int, budget_s: float, pretrain: bool = False, steps_max: int | None = None, threads: int = 1,
    checkpoints: Path | None = None,
) -> tuple[Recommender, Curve]:
    """Train on all moments but the latest tenth, by which it is judged when to stop.

    text (N, T): text vectors of `item_ids`, zeros where there is no text. The learning rate falls to nothing over
    EPOCHS_MAX epochs or `budget_s` seconds, whichever ends first; the curve says which. With `steps_max` there is no
    judging: that many steps on all moments, for a final model whose length of training is known. With a folder for
    `checkpoints` a run that was stopped goes on where it was. The same seed gives the same model unless the budget ends it.
    """  # fmt: skip
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = Recommender(config, torch.from_numpy(text))
    data = arrays(moments, {item: row for row, item in enumerate(item_ids)}, config)
    held_out = max(1, int(len(data) * VALIDATION_SHARE)) if len(data) > 1 and steps_max is None else 0
    train, validation = data.take(slice(0, len(data) - held_out)), data.take(slice(len(data) - held_out, None))
    validation = validation.take(slice(0, VALIDATION_MAX))
    recipe = (config, seed, budget_s, pretrain, steps_max, BATCH, LEARNING_RATE, WEIGHT_DECAY, EPOCHS_MAX, PATIENCE)
    known_by = [repr(recipe), *(getattr(data, one.name).tobytes() for one in fields(data)), text.tobytes()]
    with progress() as shown:
        if pretrain:
            kept = Checkpoint(checkpoints, "pre-training", known_by)
            _run(model, train, validation, seed, budget_s * 0.25, None, shown, kept, masked=True)
        share = 0.75 if pretrain else 1.0
        kept = Checkpoint(checkpoints, "user-encoder", known_by)
        curve = _run(model, train, validation, seed, budget_s * share, steps_max, shown, kept, masked=False)
    _forget_untouched(model, train)
    model.eval()
    return model, curve


@torch.no_grad()
def _forget_untouched(model: Recommender, train: Arrays) -> None:
    """An item nobody touched has learned only whom not to please, from a random start: its text alone speaks for it.

    Simulated shop, 203 untouched items of 2,400: recall@20 among them 0.55 instead of 0.44.
    """
    rows = np.union1d(train.rows, train.targets)
    untouched = np.ones(model.residuals.num_embeddings, dtype=bool)
    untouched[rows[rows >= 0]] = False
    model.residuals.weight[torch.from_numpy(untouched)] = 0.0


def _run(
    model: Recommender, train: Arrays, validation: Arrays, seed: int, budget_s: float, steps_max: int | None,
    shown: Progress, kept: Checkpoint, *, masked: bool,
) -> Curve:  # fmt: skip
    curve, started = Curve(), time.monotonic()
    if not len(train):
        curve.stopped = "no moment has a history: only counts will rank"
        return curve
    steps = steps_max or EPOCHS_MAX * max(1, len(train) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best_state, batches = copy.deepcopy(model.state_dict()), _Batches(train, seed)
    if (saved := kept.load()) is not None:
        curve, best_state = Curve(**saved["curve"]), saved["best"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        started -= curve.seconds
    name = "pre-training" if masked else "user encoder"
    task = shown.add_task(name, total=1.0)

    def state() -> dict[str, Any]:
        curve.seconds = time.monotonic() - started
        return {"curve": asdict(curve), "best": best_state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}

    while not curve.stopped:
        step = len(curve.loss)
        done = share_done(step, steps, time.monotonic() - started, budget_s)
        if done >= 1.0:
            epochs = f"after {step * BATCH / len(train):.1f} epochs"
            curve.stopped = f"{epochs}, all that were planned" if step >= steps else f"{epochs}: budget of {budget_s:.0f} s"
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * max(0.02, 1.0 - done)
        model.train()
        torch.manual_seed(seed * 1_000_003 + step)  # of dropout
        batch, rng = batches.at(step), np.random.default_rng((seed, step))
        loss = _masked_loss(model, batch, rng) if masked else _next_loss(model, batch, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.loss.append(float(loss.detach()))
        shown.update(task, completed=done, description=f"{name}, loss {curve.loss[-1]:.3f}")
        if not masked and len(validation) and int(done * CHECKS_PER_RUN) > curve.checks:
            curve.checks = int(done * CHECKS_PER_RUN)
            curve.check_steps.append(step)
            curve.validation_loss.append(validation_loss(model, validation))
            if curve.validation_loss[-1] == min(curve.validation_loss):
                best_state, curve.best_step = copy.deepcopy(model.state_dict()), step + 1
            if len(curve.check_steps) - 1 - int(np.argmin(curve.validation_loss)) >= PATIENCE:
                curve.stopped = f"at step {step + 1}: validation loss no longer fell"
        if kept.due():
            kept.save(state())
    if not masked and len(validation) and validation_loss(model, validation) > min(curve.validation_loss, default=np.inf):
        model.load_state_dict(best_state)
    kept.save(state())
    shown.update(task, completed=1.0)
    return curve


class _Batches:
    """Random batches without end, of similar history lengths within, so that little is padded; the n-th depends on the
    seed and n alone."""

    def __init__(self, train: Arrays, seed: int) -> None:
        self._train, self._seed, self._epoch = train, seed, -1
        self._lengths = (train.rows >= 0).sum(1)
        self._groups: list[npt.NDArray[np.int64]] = []
        self._in_epoch = sum(-(-min(BATCH * 16, len(train) - start) // BATCH) for start in range(0, len(train), BATCH * 16))

    def at(self, step: int) -> Arrays:
        epoch, place = divmod(step, self._in_epoch)
        if epoch != self._epoch:
            self._epoch, self._groups = epoch, self._shuffled(np.random.default_rng((self._seed, epoch, 1)))
        return self._train.take(self._groups[place])

    def _shuffled(self, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
        order, found = rng.permutation(len(self._train)), []
        for start in range(0, len(order), BATCH * 16):
            part = order[start : start + BATCH * 16]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            groups = [part[at : at + BATCH] for at in range(0, len(part), BATCH)]
            found += [groups[int(group)] for group in rng.permutation(len(groups))]
        return found


def _inputs(batch: Arrays, now_ms: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rows (B, L) with 0 for nothing, kinds, ages, mask: trimmed to the longest history."""
    length = max(1, int((batch.ts_ms > 0).sum(1).max()))
    rows = torch.from_numpy(batch.rows[:, :length].astype(np.int64))
    mask = rows >= 0
    hours = np.maximum(0, now_ms[:, None] - batch.ts_ms[:, :length]) / HOUR_MS * (batch.ts_ms[:, :length] > 0)
    ages = torch.from_numpy(np.log1p(hours).astype(np.float32))
    return rows.clamp(min=0), torch.from_numpy(batch.kinds[:, :length].astype(np.int64)), ages, mask


def _now(batch: Arrays, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Asked right after the last event, or when the user is back: both happen in serving, so any time between."""
    last = batch.ts_ms.max(1)
    return np.asarray(last + rng.random(len(last)) * (batch.now_ms - last), dtype=np.int64)


def _next_loss(model: Recommender, batch: Arrays, rng: np.random.Generator) -> Tensor:
    rows, kinds, ages, mask = _inputs(batch, _now(batch, rng))
    targets = batch.targets
    if targets.shape[1] > TARGETS_PER_STEP:  # a random part of each basket
        keys = rng.random(targets.shape) + (targets < 0)
        chosen = np.argpartition(keys, TARGETS_PER_STEP, axis=1)[:, :TARGETS_PER_STEP]
        targets = np.take_along_axis(targets, chosen, axis=1)
    if model.residuals.num_embeddings <= FULL_SOFTMAX_ITEMS_MAX:
        vectors = model.item_vectors()  # (N, D)
        user, _ = model.encoder(vectors[rows], kinds, ages, mask)  # (B, D)
        return _cross_entropy(user @ vectors.T, torch.from_numpy(targets.astype(np.int64)))
    drawn = rng.integers(0, model.residuals.num_embeddings, NEGATIVES)
    pool = np.unique(np.concatenate([targets[targets >= 0], drawn, rows.numpy()[mask.numpy()]]))  # (P,)
    vectors = model.item_vectors(torch.from_numpy(pool.astype(np.int64)))  # (P, D)
    place = torch.from_numpy(np.searchsorted(pool, rows.numpy()).clip(0, len(pool) - 1))  # (B, L)
    user, _ = model.encoder(vectors[place], kinds, ages, mask)
    local = np.where(targets >= 0, np.searchsorted(pool, targets).clip(0, len(pool) - 1), -1)
    return _cross_entropy(user @ vectors.T, torch.from_numpy(local))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over users of the mean over their targets; logits (B, N), targets (B, T) with -1 for none."""
    present = targets >= 0
    each = torch.log_softmax(logits, dim=1).gather(1, targets.clamp(min=0)) * present  # (B, T)
    return -(each.sum(1) / present.sum(1).clamp(min=1)).mean()


def _masked_loss(model: Recommender, batch: Arrays, rng: np.random.Generator) -> Tensor:
    """Hide a share of the items and guess them from the others."""
    rows, kinds, ages, mask = _inputs(batch, _now(batch, rng))
    if model.residuals.num_embeddings > FULL_SOFTMAX_ITEMS_MAX:
        raise ValueError(f"masked-item pre-training is for catalogs up to {FULL_SOFTMAX_ITEMS_MAX} items; switch it off")
    hide = torch.from_numpy(rng.random(tuple(rows.shape)) < MASK_SHARE) & mask
    hide[:, -1] |= mask[:, -1] & ~hide.any(1)
    if not hide.any():
        hide[0, 0] = True
    vectors = model.item_vectors()  # (N, D)
    items = torch.where(hide[:, :, None], model.encoder.masked, vectors[rows])  # (B, L, D)
    guessed = functional.normalize(model.encoder.contextual(items, kinds, ages, mask)[hide], dim=-1)  # (M, D)
    logits = guessed @ vectors.T * model.encoder.log_temperature.exp()
    return functional.cross_entropy(logits, rows[hide])


@torch.no_grad()
def validation_loss(model: Recommender, data: Arrays) -> float:
    """Full-softmax loss with `now` at the targets' time; deterministic."""
    model.eval()
    vectors = model.item_vectors()
    total = 0.0
    for start in range(0, len(data), BATCH):
        batch = data.take(slice(start, start + BATCH))
        rows, kinds, ages, mask = _inputs(batch, batch.now_ms)
        user, _ = model.encoder(vectors[rows], kinds, ages, mask)
        total += float(_cross_entropy(user @ vectors.T, torch.from_numpy(batch.targets.astype(np.int64)))) * len(batch)
    return total / max(1, len(data))
