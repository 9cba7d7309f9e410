"""How right the lists of words are: 70 sentences of Women's Clothing, drawn at random and labelled by hand before they were
looked up. Labels are by (review, sentence); the texts stay in their data set."""

from __future__ import annotations

from pathlib import Path

from stream.core.opinions.aspects import mentions, sentences
from tests.support.needs import needs_file

Q, S, C, L, P = "quality", "size", "comfort", "looks", "price"
LABELS: dict[tuple[int, int], set[str]] = {
    (14823, 7): {S}, (14805, 4): {Q}, (6222, 1): {Q}, (16774, 1): {S}, (6100, 0): set(), (14633, 2): {L, Q}, (4646, 0): {L},
    (1372, 4): {S}, (12981, 7): {S}, (5160, 4): {S}, (491, 4): {S, Q}, (2069, 0): {L}, (1168, 3): {L, S}, (7927, 9): {L},
    (985, 7): {Q}, (10691, 3): {C, L}, (6400, 1): set(), (9638, 1): {S}, (150, 0): {S}, (14985, 4): {C, Q}, (13329, 8): {S},
    (2726, 4): {S}, (10331, 3): set(), (16806, 2): {C}, (974, 1): set(), (3536, 6): {S}, (3532, 0): {C}, (12665, 0): set(),
    (553, 2): {L, C}, (17, 3): {S}, (6872, 0): {Q}, (15400, 3): {S}, (13022, 3): {Q}, (2393, 9): {Q}, (6504, 6): {S},
    (8840, 2): {S}, (2855, 2): {C}, (10898, 0): {L}, (13436, 0): {L, C}, (4410, 1): {C}, (3311, 0): {C}, (1962, 3): set(),
    (15952, 1): set(), (6173, 7): {L}, (16674, 1): {L}, (4291, 6): {P}, (12574, 0): set(), (12938, 3): {S}, (6975, 0): set(),
    (643, 1): set(), (6137, 3): {Q}, (3287, 0): {L, S}, (4795, 1): {C, Q}, (14468, 2): {L}, (313, 5): {L}, (9709, 1): {S},
    (2405, 0): set(), (2958, 3): {Q}, (7963, 0): {L}, (12080, 2): {L}, (14850, 2): {L}, (15850, 6): set(), (4447, 3): {S},
    (5990, 5): set(), (5050, 1): set(), (7483, 3): {L}, (6219, 1): {S}, (6441, 0): {L}, (15811, 4): {P},
}  # fmt: skip


def test_most_of_what_is_found_is_there_and_most_of_what_is_there_is_found(data_sets: Path) -> None:
    path = needs_file(data_sets / "womens-clothing" / "reviews.csv.gz")
    from training.opinions.reviews import read

    texts, hits, said, there = read("womens-clothing", path).texts, 0, 0, 0
    for (review, sentence), labels in LABELS.items():
        found = {one.aspect for one in mentions([sentences(texts[review])[sentence]])}
        hits, said, there = hits + len(found & labels), said + len(found), there + len(labels)
    print(f"precision {hits}/{said} = {hits / said:.2f}, recall {hits}/{there} = {hits / there:.2f}")
    assert hits / said >= 0.8 and hits / there >= 0.75
