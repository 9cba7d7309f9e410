"""What another text encoder is worth: the same recommender learned on the vectors of each, asked the same questions.

The encoder as it is; in eight bits, which is worth having if NDCG@10 falls by 1% at most and texts take at most 1/1.3 of
the time; adapted to the catalog by what was touched together before the split, which is worth having if NDCG@10 surely
rises. NDCG@10 is that of known users' next moments, in pairs; items new to the user and cold ones are reported beside it.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stream.adapters.models.onnx import TextEncoder
from training import train
from training.evaluation.evaluations import Evaluated, Request
from training.evaluation.metrics import Interval
from training.history.snapshot import from_dataset
from training.recommend import held_out
from training.recommend.evaluate_recommend import Make, Stage, at_split
from training.recommend.judging import averaged
from training.text import text_adaptation, text_encoder
from training.text.texts import Texts

BASE, INT8, ADAPTED = "as it is", "in eight bits", "adapted to the catalog"
LOSS_MAX = 0.01  # of NDCG@10, that eight bits may cost
SPEEDUP_MIN = 1.3
TIMED_TEXTS, TIMED_ROUNDS = 512, 3
MEASURE = "ndcg@10"


@dataclass(frozen=True)
class Encoder:
    """One that is tried."""

    name: str
    encoder: TextEncoder
    texts: Texts


def run(request: Request) -> Evaluated:
    """`clickwake evaluate text`. Options: seeds (how often the recommender is learned on each encoder's vectors)."""
    settings, own = request.settings, request.settings.training
    history = from_dataset(request.dataset, request.path)
    split_ms = request.split_ms or train.windows(history)[1]
    at_split(history, split_ms)  # as `evaluate recommend` does
    folder = text_encoder.source_folder(settings)
    texts = {item_id: text for item_id, item in history.items.items() if (text := item.text())}
    if not texts:
        raise ValueError(f"{request.dataset} has no texts of items: there is nothing to encode")

    def opened(name: str, source: Path, int8: bool) -> Encoder:
        encoder = TextEncoder(*text_encoder.graphs(source, int8), threads=own.threads)
        return Encoder(name, encoder, Texts.by_encoder(text_encoder.space_of(source, int8), encoder, texts, request.say))

    adapted = request.output or settings.training_dir / "adapted-text-encoder"
    request.say("adapting the encoder to what was touched together before the split")
    bert = text_adaptation.adapt(
        folder, *text_adaptation.lessons(history, split_ms, own.seed), seed=own.seed, budget_s=own.budget_s,
        threads=own.threads, say=request.say,
    )  # fmt: skip
    text_adaptation.save(bert, folder, adapted)
    encoders = [opened(BASE, folder, False), opened(INT8, folder, True), opened(ADAPTED, adapted, False)]
    if request.output is None:
        shutil.rmtree(adapted)
    speed = timed(encoders, sorted(set(texts.values())))

    stage = Stage(settings, history, split_ms, encoders[0].texts, request.say)
    rankers: dict[str, Make] = {}
    seeds = range(int(request.options.get("seeds", 1)))
    for one in encoders:
        for seed in seeds:
            request.say(f"learning on the vectors of the encoder {one.name}, seed {seed}")
            rankers[f"{one.name}, {seed}"] = stage.ours(*stage.learned(seed, texts=one.texts), texts=one.texts)
    found = stage.judged(rankers)
    models = {one.name: averaged([found[f"{one.name}, {seed}"] for seed in seeds]) for one in encoders}
    comparison = held_out.comparison(request.dataset, split_ms, models, BASE)
    said = verdicts(comparison.models[BASE][MEASURE].value, {name: each[MEASURE] for name, each in comparison.ahead.items()},
                    speed[INT8] / speed[BASE])  # fmt: skip
    for name, why in said.items():
        request.say(f"{name}: {why}")
    settings_said: dict[str, float | str] = {f"texts_per_s, {name}": round(value, 1) for name, value in speed.items()}
    return Evaluated(msgspec.structs.replace(comparison, task="text", settings=settings_said | {"seeds": len(seeds)} | said))


def verdicts(base: float, lost: dict[str, Interval], speedup: float) -> dict[str, str]:
    """What each encoder is worth, in words; `lost` is the base's NDCG@10 minus each one's, in pairs.

    >>> verdicts(0.5, {INT8: Interval(0.001, -0.001, 0.003), ADAPTED: Interval(-0.01, -0.02, 0.001)}, 2.0)[INT8]
    'worth having: NDCG@10 -0.2% (-0.6% … +0.2%), 2.0 times as fast'
    """
    found = {}
    for name, worth in ((INT8, lost[INT8].value <= LOSS_MAX * base and speedup >= SPEEDUP_MIN),
                        (ADAPTED, lost[ADAPTED].high < 0)):
        change, low, high = (-value / base for value in (lost[name].value, lost[name].high, lost[name].low))
        speed = f", {speedup:.1f} times as fast" if name == INT8 else ""
        found[name] = f"{'' if worth else 'not '}worth having: NDCG@10 {change:+.1%} ({low:+.1%} … {high:+.1%}){speed}"
    return found


def timed(encoders: list[Encoder], texts: list[str]) -> dict[str, float]:
    """Texts a second of each, the fastest of rounds that take turns, so that what else the machine does hits all alike."""
    some = texts[:: max(1, len(texts) // TIMED_TEXTS)]
    best = {one.name: 0.0 for one in encoders}
    for _ in range(TIMED_ROUNDS):
        for one in encoders:
            started = time.perf_counter()
            one.encoder.encode(some)
            best[one.name] = max(best[one.name], len(some) / (time.perf_counter() - started))
    return best
