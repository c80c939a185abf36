"""Greedy searches: the best path of the CTC head, and the decoder one token after the other."""

import torch
from torch import Tensor

from samba_asr.model.decoder import Decoder
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

UNSAID = (BLANK_ID, BOS_ID, EOS_ID)


def ctc_greedy(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    """Take the best token of each state, merge repeats, drop blanks (and begin and end, which mean nothing here).

    log_probs: (batch, states, vocab_size); lengths: (batch,) int64. Returns a list of tokens an utterance.
    """
    return [
        [token for token in torch.unique_consecutive(best[:length]).tolist() if token not in UNSAID]
        for best, length in zip(log_probs.argmax(-1).cpu(), lengths.tolist(), strict=True)
    ]


def autoregressive_greedy(
    decoder: Decoder, encoder_out: Tensor, encoder_lengths: Tensor, max_tokens: Tensor
) -> list[list[int]]:
    """Take the decoder's best token, step after step, up to the end token or an utterance's cap.

    encoder_out: (batch, states, d_model); encoder_lengths, max_tokens: (batch,) int64. Returns a list of tokens an
    utterance, without begin and end. An utterance that has ended leaves the batch.
    """
    results: list[list[int]] = [[] for _ in encoder_out]
    rows = torch.nonzero((encoder_lengths > 0) & (max_tokens > 0)).squeeze(1)
    state = decoder.read_memory(encoder_out[rows], encoder_lengths[rows])
    tokens = torch.full_like(rows, BOS_ID)
    step = 0
    while len(rows):
        step += 1
        logits, state = decoder.step(tokens, state)
        logits[:, [BLANK_ID, BOS_ID]] = -torch.inf
        tokens = logits.argmax(-1)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            if token != EOS_ID:
                results[row].append(token)
        going = torch.nonzero((tokens != EOS_ID) & (max_tokens[rows] > step)).squeeze(1)
        if len(going) < len(rows):
            rows, tokens, state = rows[going], tokens[going], state.reorder(going)
    return results
