"""A BERT fine-tuned on reviews: recommended or not, and stars, from the mean of the tokens and [CLS].

Both answers are learned together, since stars say more of each review than the flag does. Rates fall from layer to layer
downwards (Howard and Ruder, "Universal Language Model Fine-tuning", 2018, section 3.2), so that what the encoder knew is
kept where it is most general; word vectors stay as they are. Warm-up and linear decay: Mosbach et al., "On the Stability
of Fine-tuning BERT" (2021), section 6.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import Checkpoint
from training.opinions.reviews import UNKNOWN_STARS, Reviews
from training.progress import progress, share_done
from training.text.text_encoder import hidden_states, load_bert, mean_of_tokens
from training.text.tokens import Tokens, fast_type

STARS = 5
PREDICT_BATCH = 64
TOKENS_MAX = 160  # 99% of the clothing reviews have at most 143


@dataclass(frozen=True)
class Recipe:
    """How an encoder is fine-tuned."""

    epochs: int = 3
    batch: int = 32
    rate: float = 1e-4  # of the uppermost layer
    layer_decay: float = 0.8  # each layer below learns at this share of the one above
    head_rate: float = 1e-3
    stars_share: float = 0.5  # of the loss
    dropout: float = 0.1
    weight_decay: float = 0.01
    warmup: float = 0.1  # of all steps


class SatisfactionNet(nn.Module):
    """Token ids to the logit of "recommended" (B,) and of each star (B, 5)."""

    def __init__(self, bert: Any, dropout: float = 0.1) -> None:
        super().__init__()
        self.bert = bert
        width = 2 * bert.config.hidden_size
        self.dropout = nn.Dropout(dropout)
        self.recommended = nn.Linear(width, 1)
        self.stars = nn.Linear(width, STARS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = hidden_states(self.bert, input_ids, attention_mask, token_type_ids).float()  # (B, L, T)
        pooled = torch.cat([mean_of_tokens(hidden, attention_mask), hidden[:, 0]], dim=1)  # (B, 2T)
        pooled = self.dropout(pooled)
        return self.recommended(pooled).squeeze(1), self.stars(pooled)


@dataclass
class Tuning:
    """What fine-tuning saw, for the report."""

    loss: list[float] = field(default_factory=list)  # a step
    validation_loss: list[float] = field(default_factory=list)  # an epoch
    best_epoch: int = 0
    seconds: float = 0.0
    stopped: str = ""


def loss_of(logit: Tensor, stars: Tensor, recommended: Tensor, given: Tensor, stars_share: float) -> Tensor:
    """logit (B,), stars (B, 5) logits, recommended (B,) 0 or 1, given (B,) stars 1–5 or 0 where none were given."""
    flag = functional.binary_cross_entropy_with_logits(logit, recommended)
    known = given != UNKNOWN_STARS
    if not bool(known.any()):
        return flag
    return (1 - stars_share) * flag + stars_share * functional.cross_entropy(stars[known], given[known] - 1)


def fine_tune(
    folder: Path, train: Reviews, validation: Reviews, *, seed: int, budget_s: float, threads: int = 1,
    recipe: Recipe = Recipe(), checkpoints: Path | None = None,
) -> tuple[SatisfactionNet, Tuning]:  # fmt: skip
    """The BERT of a folder, fine-tuned; of its epochs the one with the least loss of "recommended" on validation.

    The rates fall to nothing over the epochs or `budget_s` seconds, whichever ends first; within the budget the same seed
    gives the same net on the same machine. With a folder for `checkpoints` a run that was stopped goes on where it was.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    net = SatisfactionNet(load_bert(folder), recipe.dropout)
    tokens, held_out = Tokens.of(train.texts, folder, TOKENS_MAX), Tokens.of(validation.texts, folder, TOKENS_MAX)
    recommended, stars = torch.from_numpy(train.recommended.astype(np.float32)), torch.from_numpy(train.stars)
    optimizer = torch.optim.AdamW(_groups(net, recipe), weight_decay=recipe.weight_decay)
    epoch_steps = -(-len(train) // recipe.batch)
    steps, tuning, started, best_state = recipe.epochs * epoch_steps, Tuning(), time.monotonic(), net.state_dict()
    known_by = [repr((recipe, seed, budget_s)), *train.texts, *validation.texts,
                train.recommended.tobytes(), train.stars.tobytes(), validation.recommended.tobytes(),
                *(value.numpy().tobytes() for value in net.state_dict().values())]  # fmt: skip
    kept = Checkpoint(checkpoints, "satisfaction", known_by)
    if (saved := kept.load()) is not None:
        tuning, best_state = Tuning(**saved["tuning"]), saved["best"]
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        started -= tuning.seconds

    def state() -> dict[str, Any]:
        tuning.seconds = time.monotonic() - started
        return {"tuning": asdict(tuning), "best": best_state, "net": net.state_dict(), "optimizer": optimizer.state_dict()}

    with progress() as shown:
        task = shown.add_task("fine-tuning", total=1.0)
        while not tuning.stopped:
            epoch = len(tuning.validation_loss)
            order = list(tokens.batches(recipe.batch, np.random.default_rng((seed, epoch))))
            for at in order[len(tuning.loss) - epoch * epoch_steps :]:
                done = share_done(len(tuning.loss), steps, time.monotonic() - started, budget_s)
                if done >= 1.0 and tuning.loss:
                    break
                net.train()
                torch.manual_seed(seed * 1_000_003 + len(tuning.loss))  # of dropout
                some = tokens.padded(at)
                tuning.loss.append(_step(net, optimizer, some, recommended[at], stars[at], min(done, 1.0), recipe))
                shown.update(task, completed=done, description=f"fine-tuning, loss {np.mean(tuning.loss[-50:]):.3f}")
                if kept.due():
                    kept.save(state())
            tuning.validation_loss.append(_judge(net, held_out, validation))
            if tuning.validation_loss[-1] == min(tuning.validation_loss):
                best_state, tuning.best_epoch = copy.deepcopy(net.state_dict()), len(tuning.validation_loss)
            if len(tuning.loss) >= steps:
                tuning.stopped = "all epochs"
            elif time.monotonic() - started >= budget_s:
                tuning.stopped = f"budget of {budget_s:g} s, at step {len(tuning.loss)} of {steps}"
            kept.save(state())
    net.load_state_dict(best_state)
    return net.eval(), tuning


def _step(
    net: SatisfactionNet, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, Tensor, Tensor], recommended: Tensor,
    stars: Tensor, done: float, recipe: Recipe,
) -> float:  # fmt: skip
    """One step down; rates rise during warm-up and then fall to nothing. `done` is the share of training behind it."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * min(1.0, done / recipe.warmup, (1.0 - done) / (1.0 - recipe.warmup))
    with torch.autocast("cpu", fast_type(), enabled=fast_type() is not None):
        logit, said = net(*inputs)
    loss = loss_of(logit.float(), said.float(), recommended, stars, recipe.stars_share)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _judge(net: SatisfactionNet, tokens: Tokens, reviews: Reviews) -> float:
    """Mean log loss of "recommended"."""
    signed = np.where(reviews.recommended > 0, 1.0, -1.0) * predict(net, tokens)
    return float(np.logaddexp(0.0, -signed).mean())


def _groups(net: SatisfactionNet, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters with their own rates: the head's, and each layer's, falling downwards."""
    net.bert.embeddings.requires_grad_(False)
    layers = list(net.bert.encoder.layer)
    head = [*net.recommended.parameters(), *net.stars.parameters()]
    rates = [recipe.rate * recipe.layer_decay ** (len(layers) - 1 - at) for at in range(len(layers))]
    groups = [{"params": head, "rate": recipe.head_rate}]
    return groups + [{"params": list(layer.parameters()), "rate": rate} for layer, rate in zip(layers, rates, strict=True)]


@torch.no_grad()
def predict(net: SatisfactionNet, tokens: Tokens) -> npt.NDArray[np.float32]:
    """Logits of "recommended" (U,) in the order of the tokens; without dropout."""
    net.eval()
    logits = np.zeros(len(tokens.ids), np.float32)
    order = np.argsort(tokens.lengths, kind="stable")
    for start in range(0, len(order), PREDICT_BATCH):
        at = order[start : start + PREDICT_BATCH]
        with torch.autocast("cpu", fast_type(), enabled=fast_type() is not None):
            logits[at] = net(*tokens.padded(at))[0].float().numpy()
    return logits
