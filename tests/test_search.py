"""Greedy searches against obvious ones, and their caps."""

import itertools

import pytest
import torch
from model_fixture import CONFIG

from samba_asr.config import SearchConfig
from samba_asr.decoding.greedy import autoregressive_greedy, ctc_greedy
from samba_asr.decoding.search import search_tokens
from samba_asr.model.asr import SambaASR
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

LENGTHS = torch.tensor([20, 7, 0, 13])


@pytest.fixture
def model():
    return SambaASR(CONFIG).eval()


@pytest.fixture
def encoder_out():
    return torch.randn(4, 20, CONFIG.d_model)


def test_ctc_greedy_merges_repeats_then_drops_blanks():
    path = [5, 5, BLANK_ID, 5, 6, 6, BLANK_ID, BLANK_ID, 7]
    log_probs = torch.nn.functional.one_hot(torch.tensor([path, path]), 8).float()
    assert ctc_greedy(log_probs, torch.tensor([9, 3])) == [[5, 5, 6, 7], [5]]


def test_ctc_greedy_equals_groupby():
    log_probs = torch.randn(4, 20, 6)
    log_probs[..., [BOS_ID, EOS_ID]] = -100.0
    expected = [
        [token for token, _ in itertools.groupby(row[:size].argmax(-1).tolist()) if token != BLANK_ID]
        for row, size in zip(log_probs, LENGTHS, strict=True)
    ]
    assert ctc_greedy(log_probs, LENGTHS) == expected


def by_forward(model, encoder_out, length, cap):
    """The same search, from the teacher-forced forward alone, one utterance, everything recomputed each time."""
    text = [BOS_ID]
    while len(text) <= cap:
        state = model.decoder.read_memory(encoder_out[None, :length], torch.tensor([length]))
        logits, _ = model.decoder(torch.tensor([text]), torch.tensor([len(text)]), state)
        logits[..., [BLANK_ID, BOS_ID]] = -torch.inf
        best = int(logits[0, -1].argmax())
        if best == EOS_ID:
            break
        text.append(best)
    return text[1:]


@torch.no_grad()
def test_autoregressive_greedy_equals_forward_one_by_one(model, encoder_out):
    model.decoder.out_proj.weight *= 8  # a random decoder repeats itself: spread its answers
    model.decoder.out_proj.bias[EOS_ID] += 4.0  # and let it end
    caps = torch.tensor([15, 15, 15, 6])
    found = autoregressive_greedy(model.decoder, encoder_out, LENGTHS, caps)
    expected = [
        by_forward(model, states, size, cap) if size else []
        for states, size, cap in zip(encoder_out, LENGTHS.tolist(), caps.tolist(), strict=True)
    ]
    assert found == expected
    assert len({len(tokens) for tokens in found}) > 2, "the case must have texts of different lengths"


@torch.no_grad()
@pytest.mark.parametrize("search", ["autoregressive", "joint"])
def test_cap_on_tokens_a_second(model, encoder_out, search):
    model.decoder.out_proj.bias[EOS_ID] = -100.0  # never ends by itself
    config = SearchConfig(search, max_tokens_per_second=10.0, beam_size=2, ctc_weight=0.0)
    lengths = [len(tokens) for tokens in search_tokens(model, encoder_out, LENGTHS, config)]
    assert lengths == [8, 3, 0, 6]  # 20, 7, 0 and 13 states of 40 ms, ten tokens a second, rounded up


@torch.no_grad()
def test_searches_return_no_special_tokens(model, encoder_out):
    model.decoder.out_proj.bias[[BLANK_ID, BOS_ID]] = 100.0
    for search in ("ctc", "autoregressive"):
        for tokens in search_tokens(model, encoder_out, LENGTHS, SearchConfig(search)):
            assert not {BLANK_ID, BOS_ID, EOS_ID} & set(tokens)


@torch.no_grad()
def test_ctc_search_reads_the_head(model, encoder_out):
    assert search_tokens(model, encoder_out, LENGTHS, SearchConfig("ctc")) == ctc_greedy(
        model.ctc_log_probs(encoder_out), LENGTHS
    )


@torch.no_grad()
def test_nothing_to_decode(model):
    nothing = torch.zeros(0, dtype=torch.int64)
    assert search_tokens(model, torch.zeros(0, 0, CONFIG.d_model), nothing, SearchConfig("autoregressive")) == []
    silent = torch.zeros(2, 0, CONFIG.d_model), torch.zeros(2, dtype=torch.int64)
    for search in ("ctc", "autoregressive"):
        assert search_tokens(model, *silent, SearchConfig(search)) == [[], []]
