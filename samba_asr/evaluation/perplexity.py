"""How well a language model foretells texts: perplexity, and what it is counted over."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from samba_asr.model.language_model import LanguageModel
from samba_asr.text.tokenizer import BLANK_ID, UNK_ID, Tokenizer


@dataclass(frozen=True)
class TextScores:
    """What a language model makes of some texts. A text's end is a token, a word and a character of its own."""

    nats: float
    """Surprise at all tokens and ends, summed."""
    texts: int
    """How many, and so how many ends."""
    tokens: int
    """Without ends."""
    words: int
    """Without ends."""
    characters: int
    """Without ends; the spaces between words count."""
    unknown: int
    """Tokens that stand for characters which the tokenizer never saw; which character it is, is not asked for."""

    @property
    def nats_per_token(self) -> float:
        """Mean surprise, as training lowers it."""
        return self.nats / (self.tokens + self.texts)

    @property
    def token_perplexity(self) -> float:
        """Comparable between models with one tokenizer."""
        return _exp(self.nats_per_token)

    @property
    def word_perplexity(self) -> float:
        """Comparable between all models that know all characters."""
        return _exp(self.nats / (self.words + self.texts))

    @property
    def nats_per_character(self) -> float:
        """Comparable as :attr:`word_perplexity`."""
        return self.nats / (self.characters + self.texts)

    def __add__(self, other: "TextScores") -> "TextScores":
        return TextScores(
            self.nats + other.nats,
            self.texts + other.texts,
            self.tokens + other.tokens,
            self.words + other.words,
            self.characters + other.characters,
            self.unknown + other.unknown,
        )


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def pad_texts(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return tokens (batch, tokens) int64, blank after each one's end, and their lengths (batch,) int64."""
    rows = [torch.tensor(text, dtype=torch.int64) for text in texts]
    return pad_sequence(rows, batch_first=True, padding_value=BLANK_ID), torch.tensor([len(text) for text in texts])


@torch.inference_mode()
def score_texts(
    model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[str], batch_tokens: int = 4000
) -> TextScores:
    """Score texts, normalised as the model knows them, each by itself from its begin to its end.

    The model is put into evaluation mode for that. batch_tokens: most of a batch, padding and ends included, but for a
    text that is longer by itself. Raises ValueError without any text.
    """
    if not texts:
        raise ValueError("there is no text to score")
    device, training = model.embedding.weight.device, model.training
    model.eval()
    encoded = [tokenizer.encode(text) for text in texts]
    nats = 0.0
    for batch in _batches(encoded, batch_tokens):
        tokens, lengths = pad_texts(batch)
        nats += model.losses(tokens.to(device), lengths.to(device)).double().sum().item()
    model.train(training)
    return TextScores(
        nats=nats,
        texts=len(texts),
        tokens=sum(map(len, encoded)),
        words=sum(len(text.split()) for text in texts),
        characters=sum(len(" ".join(text.split())) for text in texts),
        unknown=sum(text.count(UNK_ID) for text in encoded),
    )


def _batches(texts: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    for text in sorted(texts, key=len):
        if batch and (len(text) + 1) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(text)
    yield batch
