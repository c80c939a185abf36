"""Joint search: CTC prefix beam search in which the decoder has a say about every piece (arXiv 1609.06773, 1408.2873).

It goes through the recording state by state, as CTC does, so that no text outlasts what was said; prefixes are ranked
by both, so that what CTC spells doubtfully survives where the decoder knows the word.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from samba_asr.decoding.prefix_beam import Hypothesis, Paths, PrefixBeam, Step
from samba_asr.decoding.readings import Reader
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
    log_probs: NDArray[np.floating],
    decoder: Decoder,
    state: DecoderState,
    beam_size: int,
    ctc_weight: float,
    length_bonus: float = 0.0,
    spelling_weight: float = 1.0,
    margin: float = MARGIN,
    tree: SpellingTree | None = None,
) -> list[Hypothesis]:
    """Return at most ``beam_size`` texts, in CTC's pieces, the best first, and at least one, with their scores.

    A text's score is ctc_weight * CTC + (1 - ctc_weight) * decoder + length_bonus * pieces, both as natural logarithms
    of its probability, the decoder's end token included; CTC's choice among pieces, given that one is said, is raised
    to the power spelling_weight.

    log_probs, margin: as in :func:`ctc_prefix_beam`, but see SOFT_START; prefixes whose score is more than margin below
    the best one's are dropped too, so that where nothing is in doubt there is no beam. state: where the text starts,
    from :meth:`Decoder.read_memory`, of this recording alone. tree: how the decoder's tokens are spelt in CTC's pieces;
    None: they are the same. Raises ValueError for a beam that is not positive.
    """
    search = PrefixBeam(
        _softened(log_probs, spelling_weight), beam_size, margin * min(1.0, SOFT_START * spelling_weight)
    )
    tree = tree or spelling_tree(None, log_probs.shape[1])
    reader = Reader(decoder, state, tree, Timing(log_probs))
    weigher = _Weigher(search, reader, ctc_weight, length_bonus)
    for now, step in enumerate(search.steps):
        if step.starts:
            reader.read(_lengthened(search, step), now)
        grown = search.grow(step)
        ranked = weigher.rank(grown, now, margin)
        least = ranked[0][0] - margin
        kept = [key for weight, key in ranked[:beam_size] if -math.inf < weight >= least]
        search.keep({key: grown[key] for key in kept})
        weigher.keep(set(kept))
    reader.read(search.beam, len(search.steps), ending=True)
    found = [(weigher.final(key, paths), key) for key, paths in search.beam.items()]
    return [Hypothesis(search.text(key), score + ctc_weight * search.log_scale) for score, key in sorted(found)[::-1]]


def _softened(log_probs: NDArray[np.floating], spelling_weight: float) -> NDArray[np.floating]:
    """Raise what CTC says of pieces, given that one is said, to a power."""
    if spelling_weight == 1:
        return log_probs
    blank = log_probs[:, :1].astype(np.float64)
    spoken = np.log(np.maximum(-np.expm1(blank), np.finfo(np.float64).tiny))
    return np.concatenate([blank, spoken + spelling_weight * (log_probs[:, 1:] - spoken)], 1)


def _lengthened(search: PrefixBeam, step: Step) -> list[int]:
    """Return the prefixes that a step lengthens: many a prefix is gone before anything could follow it."""
    return [
        key
        for key, paths in search.beam.items()
        if any(piece != search.origin(key)[1] or paths.blank for piece, _ in step.starts)
    ]


class _Weigher:
    """Scores of prefixes: the CTC head's share, the decoder's, and the bonus."""

    def __init__(self, search: PrefixBeam, reader: Reader, ctc_weight: float, length_bonus: float) -> None:
        self._search, self._reader = search, reader
        self._ctc_weight, self._length_bonus = ctc_weight, length_bonus
        self._lengths = {search.ROOT: 0}
        reader.begin(search.ROOT)

    def rank(self, grown: dict[int, Paths], now: int, margin: float) -> list[tuple[float, int]]:
        """Return prefixes with their scores in a state, the best first; without new ones that are more than margin
        below the best of the others, even if the decoder, not asked yet, were certain of their last piece."""
        known = [(self._weigh(key, paths), key) for key, paths in grown.items() if key in self._lengths]
        least = max(known, default=(-math.inf, 0))[0] - margin
        for key, paths in grown.items():
            if key in self._lengths:
                continue
            parent, piece = self._search.origin(key)
            length = self._lengths[parent] + 1
            if self._ctc(paths) + self._others(length, self._reader.at_most(parent, piece)) < least:
                continue
            self._reader.lengthen(key, parent, piece, now)
            self._lengths[key] = length
            known.append((self._weigh(key, paths), key))
        return sorted(known, reverse=True)

    def final(self, key: int, paths: Paths) -> float:
        """Return a text's score, its end included."""
        return self._ctc(paths) + self._others(self._lengths[key], self._reader.final(key))

    def keep(self, keys: set[int]) -> None:
        """Forget all prefixes but these."""
        self._reader.keep(keys)
        self._lengths = {key: self._lengths[key] for key in keys}

    def _weigh(self, key: int, paths: Paths) -> float:
        return self._ctc(paths) + self._others(self._lengths[key], self._reader.score(key))

    def _others(self, length: int, said: float) -> float:
        share = 1 - self._ctc_weight
        return (share * said if share else 0.0) + self._length_bonus * length

    def _ctc(self, paths: Paths) -> float:
        total = paths.blank + paths.voiced
        if not total:
            return -math.inf
        return self._ctc_weight * math.log(total) if self._ctc_weight else 0.0
