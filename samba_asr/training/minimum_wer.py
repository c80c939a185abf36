"""Minimum word error rate training (Prabhavalkar et al., ICASSP 2018, arXiv 1712.01818)."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from samba_asr.decoding.rescoring import Reading, decoder_log_probs
from samba_asr.decoding.search import read_texts, search_stretches
from samba_asr.evaluation.wer import count_errors
from samba_asr.model.asr import SambaASR
from samba_asr.text.tokenizer import Tokenizer


class Choice(NamedTuple):
    """What joint search has to choose from in one recording, at least two texts that differ in their errors."""

    row: int
    """The recording's, in its batch."""
    readings: list[Reading]
    """Of each text."""
    scores: list[float]
    """By the search."""
    errors: list[int]
    """Words substituted, left out and put in."""


def minimum_wer_loss(model: SambaASR, states: Tensor, lengths: Tensor, choices: Sequence[Choice], words: int) -> Tensor:
    """Return the word errors to expect of joint search, over the words of the references: a scalar.

    Expected is the mean of the errors of a recording's texts, weighted by the softmax of their scores. Decoder and
    states learn from it; what CTC says of a text, and which texts there are, is taken as it stands. Scores are the
    search's, without dropout; the gradient is that of what the decoder says, in the model's mode, of each text in the
    tokens that spell it longest first.

    states: (batch, states, d_model); lengths: (batch,) int64; choices: from :func:`find_choices`, for these states
    and the model's present weights, since scores are not computed anew; words: of all references, those of recordings
    without a choice as well. Without choices it is 0 and has no gradient.
    """
    if not choices:
        return states.new_zeros(())
    said = _read(model, states, lengths, choices)
    share = 1 - model.config.search.ctc_weight
    total = states.new_zeros((), dtype=said.dtype)
    for choice, of_row in zip(choices, said.split([len(choice.scores) for choice in choices]), strict=True):
        scores = of_row.new_tensor(choice.scores) + share * (of_row - of_row.detach())
        total = total + expected_errors(scores, of_row.new_tensor(choice.errors))
    return total / max(words, 1)


def expected_errors(scores: Tensor, errors: Tensor) -> Tensor:
    """Return the mean of the texts' errors by the softmax of their scores, both (texts,)."""
    return (scores.softmax(0) * errors).sum()  # a product would be in bfloat16 under autocast


@torch.no_grad()
def find_choices(
    model: SambaASR,
    tokenizer: Tokenizer,
    states: Tensor,
    lengths: Tensor,
    references: Sequence[str],
    texts: int,
    chunk: int | None = None,
) -> list[Choice]:
    """Return what joint search has to choose from, of the recordings where it matters.

    Joint search, with the model's own weights and a beam of ``texts``, finds texts of each recording. There is nothing
    to choose where all are as bad, where the search cuts the recording into stretches, and where CTC's
    log-probabilities are no numbers, which no search can read. The model's mode is as before afterwards.

    states: (batch, states, d_model); lengths: (batch,) int64; references: the transcripts, as ``tokenizer`` gives them
    back, whose capitals and marks count if it has such; texts: at least 2; chunk: as in
    :meth:`SambaASR.ctc_log_probs`.
    """
    choices = []
    with _evaluation(model), torch.autocast(states.device.type, enabled=False):
        states = states.to(model.ctc_head.weight.dtype)  # of bf16 mixed precision
        log_probs = model.ctc_log_probs(states, lengths, chunk).cpu().numpy()
        if np.isnan(log_probs).any():
            return []
        config = dataclasses.replace(model.config.search, search="joint", beam_size=texts)
        found = search_stretches(model, states, lengths, log_probs, config)
        for row, (stretches, length) in enumerate(zip(found, lengths.tolist(), strict=True)):
            n_best = stretches[0].n_best if len(stretches) == 1 else ()
            heard = [tokenizer.decode(list(hypothesis.tokens)) for hypothesis in n_best]
            errors = [count_errors(references[row], text).errors for text in heard]
            if len(set(errors)) > 1:
                readings = read_texts(model, log_probs[row, :length], n_best)
                choices.append(Choice(row, readings, [hypothesis.log_prob for hypothesis in n_best], errors))
    return choices


def _read(model: SambaASR, states: Tensor, lengths: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Return what the decoder says of all texts, (texts,): one after the other, in the order of the choices."""
    rows = torch.tensor([choice.row for choice in choices], device=states.device)
    copies = torch.tensor([len(choice.readings) for choice in choices], device=states.device)
    memory = model.decoder.read_memory(states[rows], lengths[rows]).reorder(torch.repeat_interleave(copies))
    readings = [reading for choice in choices for reading in choice.readings]
    places = None
    if model.decoder.listening == "window":
        places = pad_sequence([torch.tensor(reading.places) for reading in readings], batch_first=True)
        places = places.to(states.device)
    return decoder_log_probs(model.decoder, memory, [reading.tokens for reading in readings], places)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
