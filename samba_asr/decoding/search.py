"""One way in for every search."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samba_asr.config import SearchConfig
from samba_asr.decoding.advisers import NOBODY, Advisers
from samba_asr.decoding.greedy import UNSAID, autoregressive_greedy, ctc_greedy
from samba_asr.decoding.joint import joint_beam
from samba_asr.decoding.prefix_beam import Hypothesis, ctc_prefix_beam
from samba_asr.decoding.rescoring import Reading, rescore
from samba_asr.decoding.spelling import spelling_of
from samba_asr.decoding.stretches import LONGEST_SECONDS, Found, Stretch, cut_at_blanks, stretch_batches
from samba_asr.model.alignment import align, listening_places
from samba_asr.model.asr import SambaASR


def search_tokens(
    model: SambaASR,
    encoder_out: Tensor,
    encoder_lengths: Tensor,
    config: SearchConfig,
    advisers: Advisers = NOBODY,
) -> list[list[int]]:
    """Turn the encoder's states into tokens: encoder_out (batch, states, d_model), encoder_lengths (batch,) int64.
    advisers: who else has a say, in joint search alone; ValueError where another has such.

    Returns a list of tokens an utterance, without special ones but, where the search chose it, the unknown. Where the
    decoder takes part, an utterance of more than ``LONGEST_SECONDS`` is cut at pauses and its stretches' tokens joined.
    """
    check_advisers(config, advisers)
    log_probs = model.ctc_log_probs(encoder_out, encoder_lengths)
    if config.search == "ctc":
        return ctc_greedy(log_probs, encoder_lengths)
    found = search_stretches(model, encoder_out, encoder_lengths, log_probs.detach().cpu().numpy(), config, advisers)
    # A piece that begins a word says so itself: joined, the last and the first word of two stretches stay two.
    return [[token for stretch in row for token in stretch.tokens] for row in found]


def search_stretches(
    model: SambaASR,
    encoder_out: Tensor,
    encoder_lengths: Tensor,
    log_probs: NDArray[np.floating],
    config: SearchConfig,
    advisers: Advisers = NOBODY,
) -> list[list[Found]]:
    """As :func:`search_tokens`, but tell which tokens were found in which stretch of an utterance, in order; one that
    need not be cut is one stretch. log_probs: what CTC says, (batch, states, CTC's vocab_size)."""
    check_advisers(config, advisers)
    longest = round(LONGEST_SECONDS / model.seconds_per_state)
    if config.search == "ctc":
        stretches = _cut(log_probs, encoder_lengths, longest)
        return _by_row(stretches, _alone(_greedy_tokens(log_probs, stretches)), len(encoder_out))
    if not (encoder_lengths > longest).any():
        texts = _decoder_search(model, encoder_out, encoder_lengths, log_probs, config, advisers)
        return [[Found(0, end, *of_row)] for end, of_row in zip(encoder_lengths.tolist(), texts, strict=True)]
    stretches = _cut(log_probs, encoder_lengths, longest)
    texts = []
    for batch, states, lengths in stretch_batches(encoder_out, stretches):
        parts = [log_probs[stretch.row, stretch.start : stretch.end] for stretch in batch]
        texts += _decoder_search(model, states, lengths, parts, config, advisers)
    return _by_row(stretches, texts, len(encoder_out))


def check_advisers(config: SearchConfig, advisers: Advisers) -> None:
    """Raise ValueError where a search has advisers that it does not ask."""
    if config.search != "joint" and advisers != NOBODY:
        raise ValueError(f"search ({config.search!r}) must be 'joint' where a language model or hotwords have a say")


Texts = tuple[list[int], tuple[Hypothesis, ...]]
"""The best text's tokens and, by joint search, it and others, the best first."""


def _by_row(stretches: Sequence[Stretch], texts: Sequence[Texts], rows: int) -> list[list[Found]]:
    found: list[list[Found]] = [[] for _ in range(rows)]
    for stretch, of_stretch in zip(stretches, texts, strict=True):
        found[stretch.row].append(Found(stretch.start, stretch.end, *of_stretch))
    return found


def _alone(tokens: Sequence[list[int]]) -> list[Texts]:
    return [(of_one, ()) for of_one in tokens]


def _greedy_tokens(log_probs: NDArray[np.floating], stretches: Sequence[Stretch]) -> list[list[int]]:
    """Return the tokens of CTC's best path that begin in each stretch: together, those of :func:`ctc_greedy`."""
    best = log_probs.argmax(-1)
    begins = (np.diff(best, prepend=-1) != 0) & ~np.isin(best, UNSAID)
    parts = [(stretch.row, slice(stretch.start, stretch.end)) for stretch in stretches]
    return [best[part][begins[part]].tolist() for part in parts]


def _cut(log_probs: NDArray[np.floating], encoder_lengths: Tensor, longest: int) -> list[Stretch]:
    """Return the stretches of every utterance, in order."""
    return [
        Stretch(row, start, end)
        for row, length in enumerate(encoder_lengths.tolist())
        for start, end in cut_at_blanks(log_probs[row, :length], length, longest)
    ]


def _decoder_search(
    model: SambaASR,
    encoder_out: Tensor,
    encoder_lengths: Tensor,
    log_probs: Sequence[NDArray[np.floating]] | NDArray[np.floating],
    config: SearchConfig,
    advisers: Advisers,
) -> list[Texts]:
    """As :func:`search_tokens`, by the searches in which the decoder takes part, each utterance as a whole; log_probs:
    what CTC says of each, (states, vocab_size)."""
    utterances = [row[:length] for row, length in zip(log_probs, encoder_lengths.tolist(), strict=True)]
    seconds = encoder_lengths * model.seconds_per_state
    max_tokens = torch.ceil(seconds * config.max_tokens_per_second).to(torch.int64)
    if config.search == "joint":
        return _joint(model, encoder_out, encoder_lengths, utterances, config, advisers, max_tokens)
    if config.search == "rescoring":
        n_best = [ctc_prefix_beam(utterance, config.beam_size) for utterance in utterances]
        weights = (config.ctc_weight, config.length_bonus)
        windows = model.decoder.listening == "window"
        read = (lambda row, n_best: read_texts(model, utterances[row], n_best)) if windows else None
        return _alone(rescore(model.decoder, encoder_out, encoder_lengths, n_best, *weights, read))
    if model.decoder.listening == "state":
        return _alone(autoregressive_greedy(model.decoder, encoder_out, encoder_lengths, max_tokens))
    alone = dataclasses.replace(config, beam_size=1, ctc_weight=0.0, length_bonus=0.0)
    found = _joint(model, encoder_out, encoder_lengths, utterances, alone, NOBODY, max_tokens)
    return _alone([tokens for tokens, _ in found])


def _joint(
    model: SambaASR,
    encoder_out: Tensor,
    encoder_lengths: Tensor,
    utterances: Sequence[NDArray[np.floating]],
    config: SearchConfig,
    advisers: Advisers,
    max_tokens: Tensor,
) -> list[Texts]:
    memory = model.decoder.read_memory(encoder_out, encoder_lengths)
    spelling = spelling_of(model.spellings, model.config.ctc_vocab_size)
    found = joint_beam(utterances, model.decoder, memory, config, advisers, spelling=spelling, most=max_tokens.tolist())
    return [(list(texts[0].tokens), tuple(texts)) for texts in found]


def read_texts(model: SambaASR, log_probs: NDArray[np.floating], n_best: Sequence[Hypothesis]) -> list[Reading]:
    """Return the tokens and places of texts in pieces, as CTC aligns them with an utterance; log_probs: what it says
    there, (states, vocab_size)."""
    spelling = spelling_of(model.spellings, model.config.ctc_vocab_size)
    tokens = [spelling.tokens(hypothesis.tokens) for hypothesis in n_best]
    spelt = [model.spell(torch.tensor([text], dtype=torch.int64), torch.tensor([len(text)])) for text in tokens]
    states = len(log_probs)
    alike = np.broadcast_to(log_probs, (len(tokens), *log_probs.shape)).copy()
    firsts = align(alike, [states] * len(tokens), [pieces for (pieces,), _ in spelt])
    return [
        Reading(text, listening_places(first, counts, states))
        for text, first, (_, (counts,)) in zip(tokens, firsts, spelt, strict=True)
    ]
