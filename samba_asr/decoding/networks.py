"""Networks as scorers of joint search: the decoder, a language model over the same tokens, and both at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samba_asr.decoding.scorers import TokenScorer
from samba_asr.model.decoder import Decoder, DecoderState
from samba_asr.model.language_model import LanguageModel, LanguageModelState
from samba_asr.ssm.mixer import Move
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID


class DecoderScorer:
    """The decoder's say. Its state starts as :meth:`Decoder.read_memory`'s."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def score(self, state: DecoderState, tokens: Tensor, move: Move, places: Tensor) -> tuple[Tensor, DecoderState]:
        """See :class:`TokenScorer`; log-probabilities are float64."""
        logits, state = self._decoder.step(tokens, state, move, places)
        return _log_probs(logits), state


class LanguageModelScorer:
    """A language model's say. Its state starts as :meth:`LanguageModel.initial_state`'s."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def score(
        self, state: LanguageModelState, tokens: Tensor, move: Move, places: Tensor
    ) -> tuple[Tensor, LanguageModelState]:
        """See :class:`TokenScorer`; places mean nothing here; log-probabilities are float64."""
        logits, state = self._model.step(tokens, state, move)
        return _log_probs(logits), state


class FusedState(NamedTuple):
    """What several scorers remember of the same texts."""

    parts: tuple[Any, ...]

    def reorder(self, indices: Tensor) -> "FusedState":
        """Pick texts, (new batch,) int64."""
        return FusedState(tuple(part.reorder(indices) for part in self.parts))


class Fused:
    """Scorers with the same tokens, log-probabilities added up with weights (shallow fusion, arXiv 1712.01996)."""

    def __init__(self, scorers: Sequence[tuple[float, TokenScorer[Any]]]) -> None:
        self._scorers = scorers

    def score(self, state: FusedState, tokens: Tensor, move: Move, places: Tensor) -> tuple[Tensor, FusedState]:
        """See :class:`TokenScorer`; what comes is no probability, but never above 0."""
        total, parts = torch.zeros((), dtype=torch.float64), []
        for (weight, scorer), part in zip(self._scorers, state.parts, strict=True):
            log_probs, part = scorer.score(part, tokens, move, places)
            total = total.to(log_probs.device) + weight * log_probs
            parts.append(part)
        return total, FusedState(tuple(parts))


def _log_probs(logits: Tensor) -> Tensor:
    """(batch, vocab_size): without the tokens that no text holds."""
    logits = logits.double()
    logits[:, [BLANK_ID, BOS_ID]] = torch.finfo(torch.float32).min  # finite, or a weight of 0 would make NaN of it
    return logits.log_softmax(-1)
