"""What may have a say in joint search beside CTC: two small interfaces, and each scorer is a file of its own.

- A :class:`TokenScorer` tells the next token of many texts at once, as networks do: the decoder and the language model
  (:mod:`samba_asr.decoding.networks`). Their tokens may be longer than CTC's pieces.
- A :class:`PieceScorer` judges one piece after the other, and is cheap: n-grams (:mod:`samba_asr.decoding.ngram`),
  hotwords (:mod:`samba_asr.decoding.hotwords`) and a lexicon (:mod:`samba_asr.decoding.lexicon`).
"""

from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

from torch import Tensor

from samba_asr.ssm.mixer import Move


class Reorderable(Protocol):
    """Remembers several texts."""

    def reorder(self, indices: Tensor) -> Self:
        """Pick texts, (new batch,) int64."""


Pool = TypeVar("Pool", bound=Reorderable)
Remembered = TypeVar("Remembered")


class TokenScorer(Protocol[Pool]):
    """Tells which token comes next."""

    def score(self, state: Pool, tokens: Tensor, move: Move, places: Tensor) -> tuple[Tensor, Pool]:
        """Let tokens follow texts: tokens (batch,) int64; move: which texts of the state they follow, and where in it
        what comes of them is put; places: (batch,) int64, the recording's states where the next tokens are expected.
        Returns log-probabilities of what comes next, (batch, vocab_size), and the state after it."""


class PieceScorer(Protocol[Remembered]):
    """Judges texts a piece at a time. Scores are natural logarithms, before any weight."""

    favours: bool
    """Whether it may favour a piece over those that others find likeliest, so that the search has to look further."""

    def start(self) -> Remembered:
        """Return what is remembered of the empty text; states are immutable, for texts share them."""

    def score(self, state: Remembered, piece: int) -> tuple[float, Remembered]:
        """Return what a piece adds to the score of the text that it lengthens, and the state after it."""

    def end(self, state: Remembered) -> float:
        """Return what the text's end adds to its score."""

    def hoped(self, state: Remembered) -> Sequence[int]:
        """Return pieces that may follow the text even where CTC finds others likelier; few or none."""
