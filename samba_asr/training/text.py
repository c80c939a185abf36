"""Batches of text without recordings, from which the decoder learns the language."""

import random
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from samba_asr.text.normalization import TextForm, normalize_for_training, normalize_text
from samba_asr.text.tokenizer import BLANK_ID, Tokenizer

LONGEST = 200
"""Tokens; longer sentences are left out."""


class TextBatches:
    """Sentences of similar length, as a function of the seed and the step alone.

    sentences: tokens of each, none empty; tokens: most of a batch, padding included, but for a sentence that is longer
    by itself.
    """

    def __init__(self, sentences: Sequence[Sequence[int]], tokens: int, seed: int) -> None:
        self.sentences = sorted(sentences, key=len)
        self.tokens = tokens
        self.seed = seed

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return tokens (batch, tokens) int64, blank after each one's end, and their lengths (batch,) int64."""
        rng = random.Random(f"text {self.seed} {step}")
        last = rng.randrange(len(self.sentences))
        count = max(1, self.tokens // len(self.sentences[last]))
        chosen = self.sentences[max(0, last + 1 - count) : last + 1]
        padded = torch.full((len(chosen), len(chosen[-1])), BLANK_ID)
        for row, sentence in zip(padded, chosen, strict=True):
            row[: len(sentence)] = torch.tensor(sentence)
        return padded, torch.tensor([len(sentence) for sentence in chosen])


def read_sentences(
    files: Sequence[str], tokenizer: Tokenizer, unwanted: Collection[str], text_form: TextForm = "spoken"
) -> list[list[int]]:
    """Return the tokens of every line that, normalised, has words, is not unwanted, is new and is not too long.

    unwanted: texts in the spoken form, whatever text_form is: their case and punctuation make no difference.

    Raises FileNotFoundError without such a file, ValueError for one that is not UTF-8 text and where no line is left.
    """
    lines: dict[str, None] = {}
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"text.files: {file} is not UTF-8 text ({error})") from error
        lines |= dict.fromkeys(normalize_text(line, text_form) for line in text.splitlines())
    sentences = [tokenizer.encode(line) for line in lines if line and normalize_for_training(line) not in unwanted]
    sentences = [sentence for sentence in sentences if len(sentence) <= LONGEST]
    if not sentences:
        raise ValueError(f"text.files: {', '.join(files)} hold no sentence of at most {LONGEST} tokens")
    return sentences
