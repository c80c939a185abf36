"""Who has a say in joint search beside CTC and the decoder: a language model, hotwords and a lexicon."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from samba_asr.config import SearchConfig
from samba_asr.decoding.hotwords import Hotwords, words_of
from samba_asr.decoding.lexicon import Lexicon
from samba_asr.decoding.ngram import NGram
from samba_asr.decoding.scorers import PieceScorer
from samba_asr.model.language_model import LanguageModel
from samba_asr.model.language_model_checkpoint import load_language_model
from samba_asr.text.tokenizer import Tokenizer


class Advisers(NamedTuple):
    """Of one search."""

    language_model: LanguageModel | None = None
    """Over the decoder's tokens; counts lm_weight."""
    piece_scorers: Sequence[tuple[float, PieceScorer[Any]]] = ()
    """Each with its weight, which is not 0: they are asked what they hope for, too."""
    length_bonus: float = 0.0
    """Added to that of the search, for each piece."""


NOBODY = Advisers()


def load_lm(
    path: str | Path, tokenizer: Tokenizer, pieces: Sequence[str], device: str | torch.device = "cpu"
) -> LanguageModel | NGram:
    """Read a language model: the folder of one of recipes/language_model, or an n-gram file (ARPA, KenLM's binary).

    tokenizer: the recogniser's; pieces: the texts of CTC's. Raises FileNotFoundError, ValueError for a model that is
    broken or has other tokens, RuntimeError where the library for n-grams is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(
                f"language model {path} is neither a folder nor a file; recipes/language_model makes one"
            )
        return NGram.load(path, pieces)
    model, its = load_language_model(path, device)
    if its.model_proto != tokenizer.model_proto:
        raise ValueError(
            f"language model {path} has other tokens than the recogniser; train one for it with: "
            "python recipes/language_model/train.py --model RECOGNISER"
        )
    return model


def advisers_of(
    search: SearchConfig,
    lm: LanguageModel | NGram | None,
    hotwords: Mapping[str, float],
    lexicon: frozenset[str] | None,
    pieces: Sequence[str],
) -> Advisers:
    """Return who has a say in a search, by its weights; NOBODY where there is neither language model nor hotword, nor a
    lexicon, which any search but joint search leaves aside.

    hotwords: phrases and weights, as :func:`samba_asr.decoding.hotwords.read_hotwords` gives; lexicon: words, as
    :func:`samba_asr.decoding.lexicon.read_lexicon` gives, to which those of hotwords are added; pieces: the texts of
    CTC's. Raises ValueError for a hotword that the pieces cannot spell.
    """
    scorers: list[tuple[float, PieceScorer[Any]]] = []
    if isinstance(lm, NGram) and search.lm_weight:
        scorers.append((search.lm_weight, lm))
    if hotwords and search.hotword_boost:
        scorers.append((search.hotword_boost, Hotwords(hotwords, pieces)))
    if lexicon and search.unknown_word_penalty and search.search == "joint":
        named = frozenset(words_of(hotwords, pieces)) if hotwords and search.hotword_boost else frozenset()
        scorers.append((search.unknown_word_penalty, Lexicon(lexicon, pieces, named)))
    model = lm if isinstance(lm, LanguageModel) and search.lm_weight else None
    bonus = search.lm_weight * search.lm_length_bonus if lm is not None else 0.0
    return Advisers(model, tuple(scorers), bonus) if model is not None or scorers else NOBODY
