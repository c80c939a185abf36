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


@torch.no_grad()
def joint_beam(
    log_probs: NDArray[np.floating],
    decoder: Decoder,
    state: DecoderState,
    beam_size: int,
    ctc_weight: float,
    length_bonus: float = 0.0,
    margin: float = MARGIN,
    tree: SpellingTree | None = None,
) -> list[Hypothesis]:
    """Return at most ``beam_size`` texts, in CTC's pieces, the best first, and at least one, with their scores.

    A text's score is ctc_weight * CTC + (1 - ctc_weight) * decoder + length_bonus * pieces, both as natural logarithms
    of its probability, the decoder's end token included.

    log_probs, margin: as in :func:`ctc_prefix_beam`; prefixes whose score is more than margin below the best one's are
    dropped too, so that where nothing is in doubt there is no beam. state: where the text starts, from
    :meth:`Decoder.read_memory`, of this recording alone. tree: how the decoder's tokens are spelt in CTC's pieces;
    None: they are the same. Raises ValueError for a beam that is not positive.
    """
    search = PrefixBeam(log_probs, beam_size, margin)
    tree = tree or spelling_tree(None, log_probs.shape[1])
    reader = Reader(decoder, state, tree, Timing(log_probs))
    weigher = _Weigher(search, reader, ctc_weight, length_bonus)
    for now, step in enumerate(search.steps):
        if step.starts:
            reader.read(_lengthened(search, step), now)
        grown = search.grow(step)
        ranked = sorted(((weigher.weigh(key, paths, now), key) for key, paths in grown.items()), reverse=True)
        least = ranked[0][0] - margin
        kept = [key for weight, key in ranked[:beam_size] if -math.inf < weight >= least]
        search.keep({key: grown[key] for key in kept})
        weigher.keep(set(kept))
    reader.read(search.beam, len(search.steps))
    found = [(weigher.final(key, paths), key) for key, paths in search.beam.items()]
    return [Hypothesis(search.text(key), score + ctc_weight * search.log_scale) for score, key in sorted(found)[::-1]]


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

    def weigh(self, key: int, paths: Paths, now: int) -> float:
        """Return a prefix's score in a state."""
        if not sum(paths):
            return -math.inf
        if key not in self._lengths:
            parent, piece = self._search.origin(key)
            self._reader.lengthen(key, parent, piece, now)
            self._lengths[key] = self._lengths[parent] + 1
        return self._ctc(paths) + self._others(key, self._reader.score(key))

    def final(self, key: int, paths: Paths) -> float:
        """Return a text's score, its end included."""
        return self._ctc(paths) + self._others(key, self._reader.final(key))

    def keep(self, keys: set[int]) -> None:
        """Forget all prefixes but these."""
        self._reader.keep(keys)
        self._lengths = {key: self._lengths[key] for key in keys}

    def _others(self, key: int, said: float) -> float:
        share = 1 - self._ctc_weight
        return (share * said if share else 0.0) + self._length_bonus * self._lengths[key]

    def _ctc(self, paths: Paths) -> float:
        return self._ctc_weight * math.log(paths.blank + paths.voiced) if self._ctc_weight else 0.0
