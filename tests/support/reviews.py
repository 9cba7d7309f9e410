"""Reviews whose answer is planted in their words, and a BERT small enough to learn them in a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from training.opinions.reviews import Reviews

GOOD = {"en": ["love", "great", "perfect", "soft", "flattering"], "zh": ["喜欢", "很好", "满意", "推荐", "舒服"]}
BAD = {"en": ["awful", "returned", "cheap", "itchy", "disappointed"], "zh": ["失望", "太差", "退货", "垃圾", "难看"]}
PLAIN = {"en": ["dress", "shirt", "the", "color", "size", "ordered", "blue"], "zh": ["衣服", "颜色", "尺码", "昨天", "收到"]}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def planted(size: int, seed: int, language: str = "en") -> Reviews:
    """More good words give more stars; four and five stars recommend. About three quarters do."""
    rng = np.random.default_rng(seed)
    texts, stars = [], rng.choice([1, 2, 3, 4, 5], size, p=[0.08, 0.08, 0.09, 0.25, 0.5])
    for of in stars:
        words = [*rng.choice(GOOD[language], of - 1), *rng.choice(BAD[language], 5 - of), *rng.choice(PLAIN[language], 6)]
        texts.append((" " if language == "en" else "").join(rng.permutation(words)))
    given = stars.astype(np.int64) if language == "en" else np.zeros(size, np.int64)
    return Reviews(language, texts, (stars >= 4).astype(float), given, [f"item {at % 60}" for at in range(size)])


def tiny_bert(folder: Path) -> Path:
    """A Hugging Face folder with random weights and the words of `planted`."""
    from transformers import BertConfig, BertModel

    words = [*SPECIAL, *GOOD["en"], *BAD["en"], *PLAIN["en"], "red", "ceramic", "mug", "x"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=256)  # fmt: skip
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder
