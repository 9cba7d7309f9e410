"""Training that is stopped goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.histories import drawn_texts, ring_walk
from tests.support.reviews import planted, tiny_bert
from training import checkpoint
from training.checkpoint import Checkpoint
from training.history.snapshot import replay
from training.opinions import satisfaction_net
from training.opinions.satisfaction_net import Recipe
from training.recommend import fit
from training.recommend.user_encoder import Config


class PowerCut(Exception):
    """The machine goes."""


@pytest.fixture(autouse=True)
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_S", 0.0)


def cut_at(call: int, function: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """The function, gone at its n-th call; and the calls that were made."""
    calls: list[int] = []

    def wrapped(*arguments: Any, **options: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == call:
            raise PowerCut
        return function(*arguments, **options)

    return wrapped, calls


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("pretrain", [False, True])
def test_the_user_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretrain: bool) -> None:
    history = ring_walk(users=40)
    moments, ids = replay(history).moments, list(history.items)
    config = Config(dim=16, layers=1, heads=2, text_dim=12)
    text = drawn_texts(history.items.values(), "s", 12).of(ids)

    def train(folder: Path | None, seed: int = 3) -> tuple[fit.Recommender, fit.Curve]:
        return fit.fit(moments, ids, text, config, seed=seed, budget_s=600.0, pretrain=pretrain, checkpoints=folder)

    expected, curve = train(None)
    steps = len(curve.loss)
    assert steps > 20
    wrapped, _ = cut_at(11, fit._next_loss)
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        patched.setattr(fit, "_next_loss", wrapped)
        train(tmp_path)
    counted, calls = cut_at(-1, fit._next_loss)
    monkeypatch.setattr(fit, "_next_loss", counted)
    found, again = train(tmp_path)
    assert len(calls) == steps - 10  # ten were done before
    assert same(found, expected)
    assert dataclasses.replace(again, seconds=0.0) == dataclasses.replace(curve, seconds=0.0)
    train(tmp_path)
    assert len(calls) == steps - 10  # a run that ended is not done again
    train(tmp_path, seed=4)
    assert len(calls) > steps - 10  # another seed is another run


def test_fine_tuning_on_reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    bert = tiny_bert(folder)
    some, validation = planted(96, seed=0), planted(32, seed=1)

    def tune(folder: Path | None) -> satisfaction_net.SatisfactionNet:
        recipe = Recipe(epochs=2)
        return satisfaction_net.fine_tune(bert, some, validation, seed=5, budget_s=600, recipe=recipe, checkpoints=folder)[0]

    expected = tune(None)
    for stopped_at in (2, 4):  # in the first epoch, and in the second
        wrapped, _ = cut_at(stopped_at, satisfaction_net._step)
        with monkeypatch.context() as patched, pytest.raises(PowerCut):
            patched.setattr(satisfaction_net, "_step", wrapped)
            tune(tmp_path / "kept" / str(stopped_at))
        assert same(tune(tmp_path / "kept" / str(stopped_at)), expected)


def test_a_damaged_checkpoint_is_left_out(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, "run", [b"data"])
    kept.save({"steps": 3})
    assert Checkpoint(tmp_path, "run", [b"data"]).load() == {"steps": 3}
    assert Checkpoint(tmp_path, "run", [b"other data"]).load() is None
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    assert Checkpoint(tmp_path, "run", [b"data"]).load() is None


def test_a_changed_file_in_any_room_makes_it_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("training/recommend/fit.py", "stream/core/user/fold.py"):
        for version in ("before", "after"):
            file = tmp_path / name.replace("/", "-") / version / name
            file.parent.mkdir(parents=True)
            file.write_text(f"# {version}\n")
        monkeypatch.setattr(checkpoint, "ROOT", tmp_path / name.replace("/", "-") / "before")
        Checkpoint(tmp_path, "run", [b"data"]).save({"steps": 3})
        assert Checkpoint(tmp_path, "run", [b"data"]).load() == {"steps": 3}
        monkeypatch.setattr(checkpoint, "ROOT", tmp_path / name.replace("/", "-") / "after")
        assert Checkpoint(tmp_path, "run", [b"data"]).load() is None, name


def test_who_is_done_leaves_what_others_are_learning(tmp_path: Path) -> None:
    others, forgotten = tmp_path / "user-encoder-0123456789abcdef.pt", tmp_path / "satisfaction-0123456789abcdef.pt"
    for file in (others, forgotten):
        file.write_bytes(b"state")
    os.utime(forgotten, (0, 0))
    Checkpoint(tmp_path, "run", [b"data"]).save({"steps": 3})
    checkpoint.clear(tmp_path)
    assert list(tmp_path.iterdir()) == [others]
    checkpoint.clear(tmp_path / "nowhere")


def test_nothing_is_kept_without_a_folder(tmp_path: Path) -> None:
    kept = Checkpoint(None, "run", [b"data"])
    kept.save({"steps": np.int64(3)})
    assert kept.load() is None and not kept.due() and not list(tmp_path.iterdir())
