"""Joint search: CTC prefix beam search in which the decoder has a say about every piece (arXiv 1609.06773, 1408.2873).

It goes through the recording state by state, as CTC does, so that no text outlasts what was said; prefixes are ranked
by both, so that what CTC spells doubtfully survives where the decoder knows the word.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samba_asr.config import SearchConfig
from samba_asr.decoding.advisers import NOBODY, Advisers
from samba_asr.decoding.networks import DecoderScorer, Fused, FusedState, LanguageModelScorer
from samba_asr.decoding.pool import Pool, Search, run_together
from samba_asr.decoding.prefix_beam import Hypothesis, Paths, PrefixBeam, Step
from samba_asr.decoding.readings import Reader
from samba_asr.decoding.scorers import TokenScorer
from samba_asr.decoding.spelling import SpellingTree, spelling_tree
from samba_asr.decoding.timing import Timing
from samba_asr.model.decoder import Decoder, DecoderState

MARGIN = 5.0
"""Nats below the best of its kind from which on a piece starts nothing and a text is given up: each text that is kept
costs a step of the decoder."""
SOFT_START = 1.6
"""Times spelling_weight, this is the share of the margin within which pieces start something, up to all of it: where
CTC's choice among them is softened, too many would."""


@torch.no_grad()
def joint_beam(
    recordings: Sequence[NDArray[np.floating]],
    decoder: Decoder,
    state: DecoderState,
    config: SearchConfig,
    advisers: Advisers = NOBODY,
    margin: float = MARGIN,
    tree: SpellingTree | None = None,
) -> list[list[Hypothesis]]:
    """Return of each recording at most ``beam_size`` texts, in CTC's pieces, the best first, and at least one, with
    their scores. All recordings are searched at once; each one's texts are those that it has alone.

    A text's score is ctc_weight * CTC + (1 - ctc_weight) * decoder + lm_weight * language model + length_bonus * pieces
    (the search's and the advisers') + what the piece scorers say, all as natural logarithms of its probability, its end
    included; CTC's choice among pieces, given that one is said, is raised to the power spelling_weight. Where the text
    can be read as tokens in several ways, decoder and language model count their sum over these.

    recordings: CTC's log-probabilities of each, (states, vocab_size). state: where texts start, from
    :meth:`Decoder.read_memory`, one for each recording. margin: as in :func:`ctc_prefix_beam`, but see SOFT_START;
    prefixes whose score is more than margin below the best one's are dropped too, so that where nothing is in doubt
    there is no beam. tree: how the decoder's tokens are spelt in CTC's pieces; None: they are the same.
    """
    if not recordings:
        return []
    tree = tree or spelling_tree(None, recordings[0].shape[1])
    pool, share = _token_scorers(decoder, state, config, advisers, len(recordings))
    searches = []
    for number, log_probs in enumerate(recordings):
        reader = Reader(pool, number, tree, Timing(log_probs)) if share else None
        softened = _softened(log_probs, config.spelling_weight)
        starting = margin * min(1.0, SOFT_START * config.spelling_weight)
        search = PrefixBeam(softened, config.beam_size, starting)
        weigher = _Weigher(search, reader, config, share, advisers)
        searches.append(_texts(search, reader, weigher, config, margin))
    return run_together(searches, pool)


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


def _texts(
    search: PrefixBeam, reader: Reader | None, weigher: "_Weigher", config: SearchConfig, margin: float
) -> Search[list[Hypothesis]]:
    """Search one recording."""
    for now, step in enumerate(search.steps):
        hoped = weigher.hoped() if step.starts else {}
        if reader and step.starts and (unread := reader.unread(_lengthened(search, step, hoped))):
            reader.learn(unread, (yield reader.asked(unread, now)))
        grown = search.grow(step, hoped)
        ranked = weigher.rank(grown, now, margin)
        least = ranked[0][0] - margin
        kept = [key for weight, key in ranked[: config.beam_size] if -math.inf < weight >= least]
        search.keep({key: grown[key] for key in kept})
        weigher.keep(set(kept))
    if reader and (unread := reader.unread(search.beam, ending=True)):
        reader.learn(unread, (yield reader.asked(unread, len(search.steps))))
    found = sorted(((weigher.final(key, paths), key) for key, paths in search.beam.items()), reverse=True)
    weigher.keep(set())  # the pool's places are for others now
    return [Hypothesis(search.text(key), score + config.ctc_weight * search.log_scale) for score, key in found]


def _softened(log_probs: NDArray[np.floating], spelling_weight: float) -> NDArray[np.floating]:
    """Raise what CTC says of pieces, given that one is said, to a power."""
    if spelling_weight == 1:
        return log_probs
    blank = log_probs[:, :1].astype(np.float64)
    spoken = np.log(np.maximum(-np.expm1(blank), np.finfo(np.float64).tiny))
    return np.concatenate([blank, spoken + spelling_weight * (log_probs[:, 1:] - spoken)], 1)


def _lengthened(search: PrefixBeam, step: Step, hoped: Collection[int]) -> list[int]:
    """Return the prefixes that a step lengthens, or may, as hoped: many a prefix is gone before anything could follow
    it."""
    return [
        key
        for key, paths in search.beam.items()
        if key in hoped or any(piece != search.origin(key)[1] or paths.blank for piece, _ in step.starts)
    ]


class _Weigher:
    """Scores of prefixes: CTC's share, that of decoder and language model, the piece scorers', and the bonus."""

    def __init__(
        self,
        search: PrefixBeam,
        reader: Reader | None,
        config: SearchConfig,
        share: float,
        advisers: Advisers,
    ) -> None:
        self._search, self._reader, self._share = search, reader, share
        self._ctc_weight, self._length_bonus = config.ctc_weight, config.length_bonus + advisers.length_bonus
        self._weights = [weight for weight, _ in advisers.piece_scorers]
        self._scorers = [scorer for _, scorer in advisers.piece_scorers]
        # Of each prefix: what bonus and piece scorers give, and what these remember.
        self._given: dict[int, tuple[float, list[Any]]] = {
            search.ROOT: (0.0, [scorer.start() for scorer in self._scorers])
        }
        if reader:
            reader.begin(search.ROOT)

    def rank(self, grown: dict[int, Paths], now: int, margin: float) -> list[tuple[float, int]]:
        """Return prefixes with their scores in a state, the best first; without new ones that are more than margin
        below the best of the others, even if decoder and language model, not asked yet, were certain of their last
        piece."""
        known = [(self._weigh(key, paths), key) for key, paths in grown.items() if key in self._given]
        least = max(known, default=(-math.inf, 0))[0] - margin
        for key, paths in grown.items():
            if key in self._given:
                continue
            parent, piece = self._search.origin(key)
            given = self._lengthen(parent, piece)
            at_most = self._share * self._reader.at_most(parent, piece) if self._reader else 0.0
            if self._ctc(paths) + given[0] + at_most < least:
                continue
            if self._reader:
                self._reader.lengthen(key, parent, piece, now)
            self._given[key] = given
            known.append((self._weigh(key, paths), key))
        return sorted(known, reverse=True)

    def hoped(self) -> dict[int, Sequence[int]]:
        """Return what piece scorers hope for, by the keys of the texts that it may follow."""
        if not self._scorers:
            return {}
        hoped = {
            key: [piece for scorer, state in zip(self._scorers, states, strict=True) for piece in scorer.hoped(state)]
            for key, (_, states) in self._given.items()
        }
        return {key: pieces for key, pieces in hoped.items() if pieces}

    def final(self, key: int, paths: Paths) -> float:
        """Return a text's score, its end included."""
        given, states = self._given[key]
        ends = zip(self._weights, self._scorers, states, strict=True)
        given += sum(weight * scorer.end(state) for weight, scorer, state in ends)
        said = self._share * self._reader.final(key) if self._reader else 0.0
        return self._ctc(paths) + said + given

    def keep(self, keys: set[int]) -> None:
        """Forget all prefixes but these."""
        if self._reader:
            self._reader.keep(keys)
        self._given = {key: self._given[key] for key in keys}

    def _lengthen(self, parent: int, piece: int) -> tuple[float, list[Any]]:
        total, before = self._given[parent]
        states = []
        for weight, scorer, state in zip(self._weights, self._scorers, before, strict=True):
            added, after = scorer.score(state, piece)
            total += weight * added
            states.append(after)
        return total + self._length_bonus, states

    def _weigh(self, key: int, paths: Paths) -> float:
        said = self._share * self._reader.score(key) if self._reader else 0.0
        return self._ctc(paths) + said + self._given[key][0]

    def _ctc(self, paths: Paths) -> float:
        total = paths.blank + paths.voiced
        if not total:
            return -math.inf
        return self._ctc_weight * math.log(total) if self._ctc_weight else 0.0
