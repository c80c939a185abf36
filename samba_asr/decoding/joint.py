"""Joint search: CTC prefix beam search in which the decoder has a say about every token (arXiv 1609.06773, 1408.2873).

It goes through the recording state by state, as CTC does, so that no text outlasts what was said; prefixes are ranked
by both, so that what CTC spells doubtfully survives where the decoder knows the word.
"""

import math
from collections.abc import Iterable, Set

import numpy as np
import torch
from numpy.typing import NDArray

from samba_asr.decoding.prefix_beam import Hypothesis, Paths, PrefixBeam, Step
from samba_asr.model.decoder import Decoder, DecoderState
from samba_asr.ssm.mixer import Move
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

MARGIN = 5.0
"""Nats below the best of its kind from which on a token starts nothing and a text is given up: each text that is kept
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
) -> list[Hypothesis]:
    """Return at most ``beam_size`` texts, the best first, and at least one, with their scores.

    A text's score is ctc_weight * CTC + (1 - ctc_weight) * decoder + length_bonus * tokens, both as natural logarithms
    of its probability, the decoder's end token included.

    log_probs, margin: as in :func:`ctc_prefix_beam`; prefixes whose score is more than margin below the best one's are
    dropped too, so that where nothing is in doubt there is no beam. state: where the text starts, from
    :meth:`Decoder.read_memory`, of this recording alone. Raises ValueError for a beam that is not positive.
    """
    search = PrefixBeam(log_probs, beam_size, margin)
    reader = _Reader(decoder, state)
    weigher = _Weigher(search, ctc_weight, length_bonus)
    weigher.learn([(search.ROOT, reader.begin(search.ROOT))])
    for step in search.steps:
        weigher.learn(reader.read(_unread(search, reader, step)))
        grown = search.grow(step)
        ranked = sorted(((weigher.weigh(key, paths), key) for key, paths in grown.items()), reverse=True)
        least = ranked[0][0] - margin
        kept = [key for weight, key in ranked[:beam_size] if -math.inf < weight >= least]
        search.keep({key: grown[key] for key in kept})
        parents = {parent for _, parent, _ in _unread(search, reader)}  # still to be read on from
        reader.keep(parents.union(kept))
        weigher.keep(parents.union(kept))
    weigher.learn(reader.read(_unread(search, reader)))
    found = [(weigher.final(key, paths), key) for key, paths in search.beam.items()]
    return [Hypothesis(search.text(key), score + ctc_weight * search.log_scale) for score, key in sorted(found)[::-1]]


def _unread(search: PrefixBeam, reader: "_Reader", step: Step | None = None) -> list[tuple[int, int, int]]:
    """Return the beam's prefixes that the decoder has not read, each with the one before it and its last token; those
    alone that a step lengthens, if one is given: many a prefix is gone before anything could follow it."""
    unread = ((key, paths, *search.origin(key)) for key, paths in search.beam.items() if not reader.knows(key))
    return [
        (key, parent, last)
        for key, paths, parent, last in unread
        if step is None or any(token != last or paths.blank for token, _ in step.starts)
    ]


class _Reader:
    """The decoder's states of the prefixes in a beam, each in a place of a pool."""

    def __init__(self, decoder: Decoder, state: DecoderState) -> None:
        self._decoder = decoder
        self._device = decoder.embedding.weight.device
        self._pool = state.reorder(torch.tensor([0, 0], device=self._device))  # a copy
        self._places: dict[int, int] = {}
        self._free = [1]

    def begin(self, root: int) -> NDArray[np.float64]:
        """Start the text; return the log-probabilities of its first token (vocab_size,)."""
        first: NDArray[np.float64] = self._step([0], [BOS_ID], [root])[0]
        self._free.append(0)
        return first

    def knows(self, key: int) -> bool:
        """Return whether a prefix has been read."""
        return key in self._places

    def read(self, prefixes: list[tuple[int, int, int]]) -> Iterable[tuple[int, NDArray[np.float64]]]:
        """Read prefixes, each with the one before it and its last token, at once; return what is likely to follow each,
        (vocab_size,) log-probabilities."""
        if not prefixes:
            return []
        keys, parents, tokens = (list(column) for column in zip(*prefixes, strict=True))
        return zip(keys, self._step([self._places[parent] for parent in parents], tokens, keys), strict=True)

    def keep(self, keys: Set[int]) -> None:
        """Forget all prefixes but these."""
        gone = self._places.keys() - keys
        self._free += [self._places.pop(key) for key in gone]

    def _step(self, sources: list[int], tokens: list[int], keys: list[int]) -> NDArray[np.float64]:
        """Let tokens follow what lies in places, and keep what comes of it under keys."""
        while len(self._free) < len(keys):
            size = len(self._free) + len(self._places)
            self._pool = self._pool.reorder(torch.arange(2 * size, device=self._device) % size)
            self._free += range(size, 2 * size)
        targets = [self._free.pop() for _ in keys]
        self._places |= zip(keys, targets, strict=True)
        said, *places = (torch.tensor(numbers, device=self._device) for numbers in (tokens, sources, targets))
        logits, self._pool = self._decoder.step(said, self._pool, Move(*places))
        return _log_probs(logits)


class _Weigher:
    """Scores of prefixes: the CTC head's share and the decoder's."""

    def __init__(self, search: PrefixBeam, ctc_weight: float, length_bonus: float) -> None:
        self._search = search
        self._ctc_weight = ctc_weight
        self._length_bonus = length_bonus
        self._next: dict[int, NDArray[np.float64]] = {}
        self._said = {search.ROOT: 0.0}

    def learn(self, read: Iterable[tuple[int, NDArray[np.float64]]]) -> None:
        """Take up what the decoder says of the tokens after prefixes."""
        self._next |= {key: (1 - self._ctc_weight) * log_probs for key, log_probs in read}

    def weigh(self, key: int, paths: Paths) -> float:
        """Return a prefix's score."""
        if not sum(paths):
            return -math.inf
        said = self._said.get(key)
        if said is None:
            parent, token = self._search.origin(key)
            said = self._said[key] = self._said[parent] + self._next[parent].item(token) + self._length_bonus
        return self._ctc(paths) + said

    def final(self, key: int, paths: Paths) -> float:
        """Return a text's score, its end included."""
        return self._ctc(paths) + self._said[key] + self._next[key].item(EOS_ID)

    def keep(self, keys: Set[int]) -> None:
        """Forget all prefixes but these."""
        self._next = {key: self._next[key] for key in keys if key in self._next}
        self._said = {key: self._said[key] for key in keys}

    def _ctc(self, paths: Paths) -> float:
        return self._ctc_weight * math.log(paths.blank + paths.voiced) if self._ctc_weight else 0.0


def _log_probs(logits: torch.Tensor) -> NDArray[np.float64]:
    """(batch, vocab_size): without the tokens that no text holds."""
    logits = logits.double()
    logits[:, [BLANK_ID, BOS_ID]] = torch.finfo(torch.float32).min  # finite, or a weight of 0 would make NaN of it
    result: NDArray[np.float64] = logits.log_softmax(-1).cpu().numpy()
    return result
