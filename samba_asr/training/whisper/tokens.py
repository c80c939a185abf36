"""A vocabulary of a Whisper teacher's own tokens, each of which has a spelling in the pieces of a CTC head.

The pieces come first, so that CTC says the first ids; then the tokens that the texts need most, and what byte-pair
encoding makes these of. So SentencePiece merges as Whisper does, and a text has a boundary nearly wherever Whisper's
has one; where a token of Whisper's is missing, more.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID, SPECIAL_IDS, UNK_ID, Tokenizer
from samba_asr.training.whisper.vocabulary import WhisperVocabulary

LAST = -1e6
"""Score of a piece that is no token of Whisper's: of all, it is merged last, and if it is no character, split again."""
LEAST_SHARE = 1e-7
"""Of all tokens, what single characters are taken to be at least: no word shall lack its letters."""


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """Return how often each word stands in normalised texts."""
    return Counter(word for text in texts for word in text.split())


def token_shares(words: Mapping[str, float], whisper: WhisperVocabulary) -> dict[str, float]:
    """Return what share of all of Whisper's tokens each is in words, by its text, the commonest first.

    A token is left out where its text alone is not that token: a part of a character, or of what Whisper never splits.
    """
    counts: defaultdict[int, float] = defaultdict(float)
    for word, count in words.items():
        for token in whisper.encode(f" {word}"):
            counts[token] += count
    total = sum(counts.values())
    texts = {token: whisper.decode([token]) for token, _ in sorted(counts.items(), key=lambda item: -item[1])}
    return {text: counts[token] / total for token, text in texts.items() if whisper.encode(text) == [token]}


def build_tokenizer(pieces: Tokenizer, whisper: WhisperVocabulary, shares: Mapping[str, float], size: int) -> Tokenizer:
    """Return a tokenizer of at most ``size`` tokens: the pieces, then those of the shares that pieces can spell, the
    commonest first, each behind those that it is merged of.

    shares: from :func:`token_shares`. Raises ValueError where size leaves no place beside the pieces.
    """
    if size <= pieces.vocab_size:
        raise ValueError(f"vocab_size ({size}) must be above that of the CTC head's pieces ({pieces.vocab_size})")
    shares = _with_characters(shares, pieces, whisper)
    model, speller, known = _read(pieces), Speller(pieces), set(pieces.pieces())
    order = {token: place for place, token in enumerate(whisper.merges)}
    for i, text in enumerate(pieces.pieces()):
        if i not in SPECIAL_IDS:
            _rank(model.pieces[i], text, whisper, order)
    for text in sorted(shares, key=lambda text: -shares[text]):
        parts = [part for part in _made_of(text, whisper) if part not in known]
        fits = len(model.pieces) + len(parts) <= size
        if fits and all(" " not in part[1:] and speller.spell(part) for part in parts):
            known.update(parts)
            for part in parts:
                model.pieces.add(piece=part.replace(" ", "\u2581"))
                _rank(model.pieces[-1], part, whisper, order)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size = len(model.pieces)
    return Tokenizer(model.SerializeToString())


def spellings(pieces: Tokenizer, tokenizer: Tokenizer) -> Tensor:
    """Return each token's pieces, (vocab_size, pieces of the longest) int16, -1 after its end, as SambaASR has them.

    A piece, and a special id, is spelt by itself.
    """
    speller = Speller(pieces)
    spelt = [
        [i] if i < pieces.vocab_size else speller.spell(text) or [UNK_ID] for i, text in enumerate(tokenizer.pieces())
    ]
    table = torch.full((len(spelt), max(map(len, spelt))), -1, dtype=torch.int16)
    for row, ids in zip(table, spelt, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return table


def token_embeddings(tokenizer: Tokenizer, whisper: WhisperVocabulary, embedding: Tensor) -> Tensor:
    """Return each token's embedding, (vocab_size, d_model): Whisper's, or the mean of its text's Whisper tokens.

    embedding: (Whisper's ids, d_model). Begin and end take those of the prompt's last mark and of Whisper's end; the
    unknown piece, the mean of all; blank, zeros.
    """
    words = embedding[: whisper.end_id]
    special = {
        BLANK_ID: torch.zeros_like(words[0]),
        UNK_ID: words.mean(0),
        BOS_ID: embedding[whisper.prompt[-1]],
        EOS_ID: embedding[whisper.end_id],
    }
    rows = [
        special[i] if i in special else embedding[whisper.encode(text)].mean(0)
        for i, text in enumerate(tokenizer.pieces())
    ]
    return torch.stack(rows)


class Speller:
    """Finds a text's likeliest pieces, by the scores of their own tokenizer."""

    def __init__(self, pieces: Tokenizer) -> None:
        scores = [piece.score for piece in _read(pieces).pieces]
        special = (BLANK_ID, UNK_ID, BOS_ID, EOS_ID)
        self._known = {text: (i, scores[i]) for i, text in enumerate(pieces.pieces()) if i not in special}
        self._longest = max(map(len, self._known))

    def spell(self, text: str) -> list[int]:
        """Return the ids of the pieces whose texts make up this one, none where no pieces do."""
        best: list[tuple[float, list[int]] | None] = [(0.0, []), *(None for _ in text)]
        for end in range(1, len(text) + 1):
            for start in range(max(0, end - self._longest), end):
                before, found = best[start], self._known.get(text[start:end])
                if before is None or found is None:
                    continue
                score = before[0] + found[1]
                held = best[end]
                if held is None or score > held[0]:
                    best[end] = (score, [*before[1], found[0]])
        last = best[-1]
        return last[1] if last is not None else []


def _with_characters(shares: Mapping[str, float], pieces: Tokenizer, whisper: WhisperVocabulary) -> dict[str, float]:
    """Add the characters that CTC can write, alone and at a word's start, where they are tokens of Whisper's."""
    characters = {text.strip() for text in pieces.pieces()[EOS_ID + 1 :] if len(text.strip()) == 1}
    wanted = sorted(text for character in characters for text in (character, f" {character}"))
    return {**{text: LEAST_SHARE for text in wanted if len(whisper.encode(text)) == 1}, **shares}


def _made_of(text: str, whisper: WhisperVocabulary) -> list[str]:
    """Return the texts of all tokens that are merged on the way to a token, itself the last, each once; bytes that are
    no character count."""
    found: dict[int, None] = {}

    def visit(token: int) -> None:
        for part in whisper.merges.get(token, ()):
            visit(part)
        found[token] = None

    (token,) = whisper.encode(text)
    visit(token)
    return [whisper.decode([each]) for each in found]


def _rank(piece: Any, text: str, whisper: WhisperVocabulary, order: Mapping[int, int]) -> None:
    """Let SentencePiece merge a piece, its own message, when Whisper does; order: of the merges."""
    ids = whisper.encode(text)
    whole = len(ids) == 1
    piece.score = -float(order.get(ids[0], 0)) if whole else LAST
    piece.type = piece.NORMAL if whole or len(text) == 1 else piece.UNUSED


def _read(tokenizer: Tokenizer) -> Any:
    """Return SentencePiece's own message."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    model.ParseFromString(tokenizer.model_proto)
    return model
