"""What a text talks about, sentence by sentence: aspects by lists of words in English and Chinese.

A sentence is about an aspect when it holds one of its words. The words and the sentence are kept, so that everybody can see
why; whether the sentence is pleased is read by the same model as whole reviews. How right both are: docs/satisfaction.md.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import NamedTuple

SENTENCES_MAX = 24  # of one text
SENTENCE_CHARS_MAX = 300

# English: stems, matched at a word's beginning; a word ending in $ is matched whole. Chinese: as they stand.
WORDS = MappingProxyType({
    "quality": ("quality material fabric stitch seam$ seams$ thread durab sturdy flimsy broke$ broken tear$ tore$ torn$ "
                "ripped defect flaw hole$ holes$ cheap$ cheaply$ sheer$ thin$ shrank shrink shrunk pilling fell~apart "
                "well~made",
                "质量 材质 面料 布料 做工 起球 掉色 线头 瑕疵 破损 坏了 品质 薄"),
    "size": ("size sizing fit$ fits$ fitted$ fitting$ small smaller large larger big$ bigger tight loose snug length$ long$ "
             "longer$ short$ shorter$ petite$ petites$ waist$ bust$ runs$ xs$ xl$ baggy huge$",
             "尺码 尺寸 大小 偏大 偏小 太大 太小 太长 太短 合身 大一号 小一号"),
    "comfort": ("comfort comfy soft softer itch scratch cozy cosy warm warmth breath heavy$ lightweight$",
                "舒服 舒适 柔软 扎人 保暖 透气 手感"),
    "looks": ("color colour look$ looks$ looked$ style styl design pattern print$ prints$ pretty beautiful cute$ flattering "
              "unflattering gorgeous picture photo ugly$ lovely$",
              "颜色 款式 好看 漂亮 难看 外观 样式 色差 图片 样子"),
    "delivery": ("deliver shipp arrived$ arrive$ courier parcel packag dispatch late$",
                 "物流 快递 发货 送货 包装 到货 配送 速度"),
    "price": ("price pricey expensive overpriced cost$ costs$ worth$ value$ sale$ discount money$ afford bargain",
              "价格 便宜 性价比 实惠 划算 价钱 优惠 降价 太贵 贵了"),
    "service": ("service support$ staff$ refund helpful rude$ reply$ replied$ customer~care complain warranty",
                "客服 服务 售后 态度 退货 换货 卖家 店家 退款"),
})  # fmt: skip


def _pattern(english: str, chinese: str) -> re.Pattern[str]:
    words = [re.escape(one.removesuffix("$")).replace(r"\~", r"\s+") + (r"\b" if one.endswith("$") else r"\w*")
             for one in english.split()]  # fmt: skip
    return re.compile(rf"\b(?:{'|'.join(words)})|(?:{'|'.join(chinese.split())})", re.IGNORECASE | re.ASCII)


_PATTERNS = {name: _pattern(*words) for name, words in WORDS.items()}
_ENDS = re.compile(r"(?<=[.!?;])\s+|[。！？；…\n\r]+|，|\s+(?=but\b)|(?=但是|不过|可是|就是)", re.IGNORECASE)


class Mention(NamedTuple):
    """A sentence, by its place in the text's sentences, that is about an aspect, and the words that say so."""

    aspect: str
    words: tuple[str, ...]
    sentence: int


def sentences(text: str) -> list[str]:
    """The text in pieces that say one thing each: sentences, cut again before "but", Chinese at commas too.

    >>> sentences("Soft fabric. It shrank, but I love it!"), sentences("物流很快，但是质量很差。")
    (['Soft fabric.', 'It shrank,', 'but I love it!'], ['物流很快', '但是质量很差'])
    """
    pieces = [one.strip()[:SENTENCE_CHARS_MAX] for one in _ENDS.split(text) if one and one.strip()]
    return pieces[:SENTENCES_MAX]


def mentions(pieces: list[str]) -> list[Mention]:
    """What each sentence is about.

    >>> [(one.aspect, one.words) for one in mentions(["The fabric is thin", "物流很快"])]
    [('quality', ('fabric', 'thin')), ('delivery', ('物流',))]
    """
    found = []
    for at, piece in enumerate(pieces):
        for aspect, pattern in _PATTERNS.items():
            words = tuple(dict.fromkeys(one.lower() for one in pattern.findall(piece)))
            if words:
                found.append(Mention(aspect, words, at))
    return found


def telling(pieces: list[str], p_satisfied: list[float] | None, satisfaction: float | None) -> str:
    """The sentence that says most: the least pleased of a bad opinion, the most pleased of a good one; without a model the
    first that is about anything.

    >>> telling(["It came.", "Torn at the seam."], [0.7, 0.1], 0.2), telling(["It came.", "Torn at the seam."], None, 0.2)
    ('Torn at the seam.', 'Torn at the seam.')
    """
    if not pieces:
        return ""
    if p_satisfied is None or satisfaction is None:
        about = mentions(pieces)
        return pieces[about[0].sentence if about else 0]
    chosen = min if satisfaction < 0.5 else max
    return pieces[chosen(range(len(pieces)), key=lambda at: p_satisfied[at])]
