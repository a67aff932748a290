"""The words that name a split: ``train``, ``Test``, ``training_set``, ``imagesTr``, ``测试集``."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from spectok.data.listing import composed

SPELLINGS = {
    "train": ("train", "training", "trn", "trainval"),
    "test": ("test", "testing", "tst"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation", "holdout"),
}
_ELSEWHERE = {
    "train": (
        *("treino", "treinamento", "entrenamiento", "entraînement", "entrainement"),
        *("apprentissage", "addestramento", "обучение", "训练", "訓練", "学習", "훈련", "학습"),
    ),
    "test": ("teste", "prueba", "pruebas", "тест", "测试", "測試", "テスト", "테스트"),
    "validation": (
        *("validação", "validacao", "validación", "validacion", "validierung", "validazione"),
        *("валидация", "验证", "驗證", "検証", "검증"),
    ),
}
SHORT = {"tr": "train", "ts": "test", "te": "test", "va": "validation"}
"""Words that are countries and languages too; see :meth:`Division._recognise`."""
QUALIFIERS = {
    *("private", "public", "hidden", "final", "blind", "challenge", "easy", "hard", "clean"),
    *("unlabeled", "unlabelled", "labeled", "labelled", "without labels", "no labels", "a", "b"),
}
"""What may stand beside ``test`` where the training part is called just ``train``."""
LOOK_ALIKES = (("seen", "unseen"), ("known", "unknown"), ("gallery", "query"))
"""Names that may be two splits, but are not clear enough to divide the data by them."""
MEANING = {w: split for table in (SPELLINGS, _ELSEWHERE) for split in table for w in table[split]}
FILLER = "(?:data(?:set)?|set|image|img|picture|pic|photo|split|file|folder|part|shard)s?|of"
_JOINED = re.compile(rf"({'|'.join(MEANING)})(?:{FILLER}|数据集?|集合?|セット|データ)")
WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])")


class SplitName(NamedTuple):
    """What a name says about a split.

    Args:
        split: ``train``, ``test`` or ``validation``.
        rest: The other words of the name; empty if it says nothing else.
    """

    split: str
    rest: str


@lru_cache(1 << 16)
def parse_split_name(name: str, is_file: bool = False, short: bool = False) -> SplitName | None:
    """Return what a name says about a split; None if it says nothing, or names two splits.

    Args:
        name: A directory, the stem of a file, or a split of a data set on the hub.
        is_file: Whether a split as the first word is all that counts, as in
            ``train-00000-of-00001-a09b74b3ef9c3b56``.
        short: Whether ``tr``, ``ts`` and ``va`` say something too, as in ``imagesTr``.
    """
    meaning = MEANING | SHORT if short else MEANING
    if is_file:  # and the hash after them
        name = re.sub(r"-\d+-of-\d+\b.*", "", name)
    name = re.sub(r"(?i)(hold|held)[\W_]*out", "holdout", composed(name))
    name = re.sub(r"(?i)(private|public)(?=test)", r"\1 ", name)
    for text in (name, name.lower()):  # TestSet is two words, TRAINset is one
        words = [word.lower() for word in WORD.findall(text)]
        words = [m[1] if (m := _JOINED.fullmatch(word)) else word for word in words]
        if words == ["train", "val"]:
            words = ["trainval"]
        meant = {meaning[word] for word in words if word in meaning}
        if meant:
            break
    if len(meant) != 1:
        return None
    if is_file and words[0] in meaning:
        return SplitName(meant.pop(), "")
    rest = [word for word in words if word not in meaning and not re.fullmatch(FILLER, word)]
    return SplitName(meant.pop(), " ".join(rest))
