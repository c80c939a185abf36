"""Two-pass search: CTC proposes a few texts, the decoder reads each of them, the best sum of both wins."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from samba_asr.decoding.prefix_beam import Hypothesis
from samba_asr.model.asr import IGNORED, decoder_pairs
from samba_asr.model.decoder import Decoder, DecoderState


class Reading(NamedTuple):
    """A text as a decoder reads it that has tokens of its own and listens by windows."""

    tokens: list[int]
    places: list[int]
    """Where it listens for each of them and for the end."""


def decoder_log_probs(
    decoder: Decoder, state: DecoderState, texts: Sequence[Sequence[int]], places: Tensor | None = None
) -> Tensor:
    """Return each text's log-probability under the decoder, its end token included: (texts,), float32 at least.

    state: where each text starts, from :meth:`Decoder.read_memory`, one for each; texts: tokens without begin and end;
    places: (texts, tokens + 1), as in :meth:`Decoder.forward`.
    """
    device = decoder.embedding.weight.device
    lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64, device=device)
    padded = pad_sequence([torch.tensor(text, dtype=torch.int64) for text in texts], batch_first=True).to(device)
    inputs, targets = decoder_pairs(padded, lengths)
    logits, _ = decoder(inputs, lengths + 1, state, places)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return -losses.sum(1)


def rescore(
    decoder: Decoder,
    encoder_out: Tensor,
    encoder_lengths: Tensor,
    n_best: Sequence[Sequence[Hypothesis]],
    ctc_weight: float,
    length_bonus: float = 0.0,
    read: Callable[[int, Sequence[Hypothesis]], list[Reading]] | None = None,
) -> list[list[int]]:
    """Return each utterance's best hypothesis by ctc_weight * CTC + (1 - ctc_weight) * decoder + length_bonus * tokens.

    encoder_out: (batch, states, d_model); encoder_lengths: (batch,) int64; n_best: at least one hypothesis for each
    utterance; read: what a decoder that listens by windows reads for the hypotheses of an utterance. The decoder reads
    each recording once and scores all texts at once; where there is one, it is not asked.
    """
    best = [list(hypotheses[0].tokens) for hypotheses in n_best]
    open_rows = [row for row, hypotheses in enumerate(n_best) if len(hypotheses) > 1]
    if not open_rows:
        return best
    device = encoder_out.device
    rows = torch.tensor(open_rows, device=device)
    copies = torch.tensor([len(n_best[row]) for row in open_rows], device=device)
    state = decoder.read_memory(encoder_out[rows], encoder_lengths[rows])
    state = state.reorder(torch.repeat_interleave(copies))
    if read is None:
        scores = decoder_log_probs(decoder, state, [found.tokens for row in open_rows for found in n_best[row]])
    else:
        readings = [reading for row in open_rows for reading in read(row, n_best[row])]
        places = pad_sequence([torch.tensor(reading.places) for reading in readings], batch_first=True).to(device)
        scores = decoder_log_probs(decoder, state, [reading.tokens for reading in readings], places)
    for row, of_row in zip(open_rows, scores.split(copies.tolist()), strict=True):
        totals = [
            ctc_weight * hypothesis.log_prob + (1 - ctc_weight) * score + length_bonus * len(hypothesis.tokens)
            for hypothesis, score in zip(n_best[row], of_row.tolist(), strict=True)
        ]
        best[row] = list(n_best[row][totals.index(max(totals))].tokens)
    return best
