"""Every method of the panel, by the name it is asked for with `--only`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from training.panel.ease import Ease
from training.panel.item_knn import ItemKnn
from training.panel.method import Method
from training.panel.popularity import PersonalFrequency, Popularity
from training.panel.sequence_rules import SequenceRules
from training.panel.tifu_knn import TifuKnn
from training.panel.transformer import Transformer
from training.panel.v_sknn import VSknn

ROSTER: dict[str, Callable[[], Method]] = {
    "popularity": lambda: Popularity(None),
    "popularity-7": lambda: Popularity(7),
    "popularity-14": lambda: Popularity(14),
    "popularity-30": lambda: Popularity(30),
    "personal-frequency": PersonalFrequency,
    "item-knn": ItemKnn,
    "sequence-rules": SequenceRules,
    "v-sknn": VSknn,
    "tifu-knn": TifuKnn,
    "ease": Ease,
    "sasrec": lambda: Transformer("binary"),
    "sasrec-softmax": lambda: Transformer("softmax"),
    "bert4rec": lambda: Transformer("masked"),
}


def panel(only: Iterable[str] = ()) -> list[Method]:
    """New methods, not fitted: all, or those named. Raises ValueError for a name that is none.

    >>> [method.name for method in panel(["ease", "popularity-7"])]
    ['EASE', 'popularity, 7 days']
    """
    wanted = list(only) or list(ROSTER)
    unknown = [name for name in wanted if name not in ROSTER]
    if unknown:
        raise ValueError(f"there is no method {', '.join(unknown)}; known are {', '.join(ROSTER)}")
    return [ROSTER[name]() for name in wanted]
