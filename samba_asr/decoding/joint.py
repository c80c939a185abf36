"""Joint search: the decoder writes token after token, and CTC and others weigh every text (arXiv 1609.06773)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samba_asr.config import SearchConfig
from samba_asr.decoding.advisers import NOBODY, Advisers
from samba_asr.decoding.networks import DecoderScorer, Fused, FusedState, LanguageModelScorer
from samba_asr.decoding.pool import Pool, run_together
from samba_asr.decoding.prefix_beam import Hypothesis
from samba_asr.decoding.scorers import TokenScorer
from samba_asr.decoding.spelling import Spelling, spelling_of
from samba_asr.decoding.token_beam import MARGIN, TokenBeam, Weights
from samba_asr.model.decoder import Decoder, DecoderState


@torch.no_grad()
def joint_beam(
    recordings: Sequence[NDArray[np.floating]],
    decoder: Decoder,
    state: DecoderState,
    config: SearchConfig,
    advisers: Advisers = NOBODY,
    margin: float = MARGIN,
    spelling: Spelling | None = None,
    most: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Return of each recording at most ``beam_size`` texts, in CTC's pieces, the best first, and at least one, with
    their scores. All recordings are searched at once; each one's texts are those that it has alone.

    A text's score is ctc_weight * CTC + (1 - ctc_weight) * decoder + lm_weight * language model + length_bonus * pieces
    (the search's and the advisers') + what the piece scorers say, all as natural logarithms of its probability, its end
    included; CTC's choice among pieces, given that one is said, is raised to the power spelling_weight. Where the text
    was found as tokens in several ways, decoder and language model count their sum over these. No text has more pieces
    than CTC can say in its recording. With ctc_weight 0 it is the decoder's own beam search, which CTC tells where to
    listen; with 1 the decoder is not asked, and it is CTC's prefix search.

    recordings: CTC's log-probabilities of each, (states, vocab_size). state: where texts start, from
    :meth:`Decoder.read_memory`, one for each recording. margin: as of :class:`TokenBeam`. spelling: how the decoder's
    tokens are spelt in CTC's pieces; None: they are the same. most: tokens of a text, of each recording; None: any
    number.
    """
    if not recordings:
        return []
    spelling = spelling or spelling_of(None, recordings[0].shape[1])
    pool, share = _token_scorers(decoder, state, config, advisers, len(recordings))
    weights = Weights(config, advisers, share)
    beams = [
        TokenBeam(
            log_probs, spelling, weights, (pool, number) if share else None, margin, most[number] if most else None
        )
        for number, log_probs in enumerate(recordings)
    ]
    return run_together([beam.search() for beam in beams], pool)


def _token_scorers(
    decoder: Decoder, state: DecoderState, config: SearchConfig, advisers: Advisers, recordings: int
) -> tuple[Pool, float]:
    """Return who tells the next token, and how much that counts; 0 where nobody is asked."""
    share, lm_weight = 1 - config.ctc_weight, config.lm_weight if advisers.language_model is not None else 0.0
    scorers: list[tuple[float, TokenScorer[Any]]] = []
    states: list[Any] = []
    if share:
        scorers.append((1.0, DecoderScorer(decoder)))
        states.append(state)
    if lm_weight and advisers.language_model is not None:
        scorers.append((lm_weight / (share or lm_weight), LanguageModelScorer(advisers.language_model)))
        states.append(advisers.language_model.initial_state(recordings))
    device = decoder.embedding.weight.device
    return Pool(Fused(scorers), FusedState(tuple(states)), recordings, device), share or lm_weight
