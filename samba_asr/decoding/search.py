"""One way in for every search."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samba_asr.config import SearchConfig
from samba_asr.decoding.greedy import autoregressive_greedy, ctc_greedy, window_greedy
from samba_asr.decoding.joint import joint_beam
from samba_asr.decoding.prefix_beam import Hypothesis, ctc_prefix_beam
from samba_asr.decoding.rescoring import Reading, rescore
from samba_asr.decoding.spelling import spelling_tree
from samba_asr.decoding.stretches import LONGEST_SECONDS, Stretch, cut_at_blanks, stretch_batches
from samba_asr.model.alignment import align, listening_places
from samba_asr.model.asr import SambaASR


def search_tokens(
    model: SambaASR, encoder_out: Tensor, encoder_lengths: Tensor, config: SearchConfig
) -> list[list[int]]:
    """Turn the encoder's states into tokens: encoder_out (batch, states, d_model), encoder_lengths (batch,) int64.

    Returns a list of tokens an utterance, without special ones but, where the search chose it, the unknown. Where the
    decoder takes part, an utterance of more than ``LONGEST_SECONDS`` is cut at pauses and its stretches' tokens joined.
    """
    log_probs = model.ctc_log_probs(encoder_out, encoder_lengths)
    if config.search == "ctc":
        return ctc_greedy(log_probs, encoder_lengths)
    said = log_probs.detach().cpu().numpy()
    longest = round(LONGEST_SECONDS / model.seconds_per_state)
    if not (encoder_lengths > longest).any():
        return _decoder_search(model, encoder_out, encoder_lengths, said, config)
    tokens: list[list[int]] = [[] for _ in encoder_out]
    stretches = _cut(said, encoder_lengths, longest)
    for batch, states, lengths in stretch_batches(encoder_out, stretches):
        # A piece that begins a word says so itself: joined, the last and the first word stay two.
        parts = [said[stretch.row, stretch.start : stretch.end] for stretch in batch]
        for stretch, found in zip(batch, _decoder_search(model, states, lengths, parts, config), strict=True):
            tokens[stretch.row] += found
    return tokens


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
) -> list[list[int]]:
    """As :func:`search_tokens`, by the searches in which the decoder takes part, each utterance as a whole; log_probs:
    what CTC says of each, (states, vocab_size)."""
    utterances = [row[:length] for row, length in zip(log_probs, encoder_lengths.tolist(), strict=True)]
    if config.search == "joint":
        return _joint(model, encoder_out, encoder_lengths, utterances, config)
    if config.search == "rescoring":
        n_best = [ctc_prefix_beam(utterance, config.beam_size) for utterance in utterances]
        weights = (config.ctc_weight, config.length_bonus)
        read = partial(_read, model, utterances) if model.decoder.listening == "window" else None
        return rescore(model.decoder, encoder_out, encoder_lengths, n_best, *weights, read)
    seconds = encoder_lengths * model.seconds_per_state
    max_tokens = torch.ceil(seconds * config.max_tokens_per_second).to(torch.int64)
    if model.decoder.listening == "state":
        return autoregressive_greedy(model.decoder, encoder_out, encoder_lengths, max_tokens)
    memory = model.decoder.read_memory(encoder_out, encoder_lengths)
    states = [memory.reorder(torch.tensor([row], device=encoder_out.device)) for row in range(len(utterances))]
    return [
        window_greedy(model.decoder, state, utterance, model.spellings, most)
        for state, utterance, most in zip(states, utterances, max_tokens.tolist(), strict=True)
    ]


def _read(
    model: SambaASR, utterances: Sequence[NDArray[np.floating]], row: int, n_best: Sequence[Hypothesis]
) -> list[Reading]:
    """Return the tokens and places of texts in pieces, as CTC aligns them with an utterance."""
    tree = spelling_tree(model.spellings, model.config.ctc_vocab_size)
    tokens = [tree.tokens(hypothesis.tokens) for hypothesis in n_best]
    spelt = [model.spell(torch.tensor([text], dtype=torch.int64), torch.tensor([len(text)])) for text in tokens]
    log_probs = utterances[row]
    states = len(log_probs)
    alike = np.broadcast_to(log_probs, (len(tokens), *log_probs.shape)).copy()
    firsts = align(alike, [states] * len(tokens), [pieces for (pieces,), _ in spelt])
    return [
        Reading(text, listening_places(first, counts, states))
        for text, first, (_, (counts,)) in zip(tokens, firsts, spelt, strict=True)
    ]


def _joint(
    model: SambaASR,
    encoder_out: Tensor,
    encoder_lengths: Tensor,
    utterances: Sequence[NDArray[np.floating]],
    config: SearchConfig,
) -> list[list[int]]:
    """As :func:`_decoder_search`, one utterance after the other."""
    memory = model.decoder.read_memory(encoder_out, encoder_lengths)
    tree = spelling_tree(model.spellings, model.config.ctc_vocab_size)
    settings = (config.beam_size, config.ctc_weight, config.length_bonus, config.spelling_weight)
    found = []
    for row, log_probs in enumerate(utterances):
        state = memory.reorder(torch.tensor([row], device=encoder_out.device))
        found.append(list(joint_beam(log_probs, model.decoder, state, *settings, tree=tree)[0].tokens))
    return found
