"""Greedy searches: the best path of the CTC head, and the decoder one token after the other."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samba_asr.decoding.timing import Follower, Timing
from samba_asr.model.decoder import Decoder, DecoderState
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


def window_greedy(
    decoder: Decoder, state: DecoderState, log_probs: NDArray[np.floating], spellings: Tensor | None, max_tokens: int
) -> list[int]:
    """As :func:`autoregressive_greedy`, for a decoder that listens by windows: CTC tells where it has to listen for
    what comes next, and has no say in what that is.

    state: from :meth:`Decoder.read_memory`, of this recording alone; log_probs: CTC's, (states, vocab_size); spellings:
    (vocab_size, longest) the pieces of each token, -1 after the last; None: each token is a piece.
    """
    text: list[int] = []
    if not len(log_probs):
        return text
    device = decoder.embedding.weight.device
    timing, follower = Timing(log_probs), Follower(log_probs)
    token, place = BOS_ID, timing.begin()
    while len(text) < max_tokens:
        logits, state = decoder.step(
            torch.tensor([token], device=device), state, places=torch.tensor([place], device=device)
        )
        logits[:, [BLANK_ID, BOS_ID]] = -torch.inf
        token = int(logits.argmax())
        if token == EOS_ID:
            break
        text.append(token)
        pieces = [token] if spellings is None else [piece for piece in spellings[token].tolist() if piece >= 0]
        for piece in pieces:
            place = timing.following(follower.follow(piece), piece)
    return text
