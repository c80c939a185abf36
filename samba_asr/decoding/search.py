"""One way in for every search."""

import torch
from torch import Tensor

from samba_asr.config import SearchConfig
from samba_asr.decoding.greedy import autoregressive_greedy, ctc_greedy
from samba_asr.decoding.prefix_beam import ctc_prefix_beam
from samba_asr.decoding.rescoring import rescore
from samba_asr.model.asr import SambaASR


def search_tokens(
    model: SambaASR, encoder_out: Tensor, encoder_lengths: Tensor, config: SearchConfig
) -> list[list[int]]:
    """Turn the encoder's states into tokens: encoder_out (batch, states, d_model), encoder_lengths (batch,) int64.

    Returns a list of tokens an utterance, without special ones but, where the search chose it, the unknown.
    """
    if config.search == "ctc":
        return ctc_greedy(model.ctc_log_probs(encoder_out), encoder_lengths)
    if config.search == "rescoring":
        log_probs = model.ctc_log_probs(encoder_out).detach().cpu().numpy()
        n_best = [
            ctc_prefix_beam(utterance[:length], config.beam_size)
            for utterance, length in zip(log_probs, encoder_lengths.tolist(), strict=True)
        ]
        return rescore(model.decoder, encoder_out, encoder_lengths, n_best, config.ctc_weight)
    seconds = encoder_lengths * model.seconds_per_state
    max_tokens = torch.ceil(seconds * config.max_tokens_per_second).to(torch.int64)
    return autoregressive_greedy(model.decoder, encoder_out, encoder_lengths, max_tokens)
