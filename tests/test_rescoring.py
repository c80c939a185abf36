"""Two-pass search against the decoder's own steps, one hypothesis at a time."""

from dataclasses import replace

import pytest
import torch
from model_fixture import CONFIG

from samba_asr.config import SearchConfig
from samba_asr.decoding.prefix_beam import Hypothesis, ctc_prefix_beam
from samba_asr.decoding.rescoring import decoder_log_probs, rescore
from samba_asr.decoding.search import search_tokens
from samba_asr.model.asr import SambaASR
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

LENGTHS = torch.tensor([20, 7, 0, 13])
RESCORING = SearchConfig("rescoring")
N_BEST = [
    [Hypothesis((5, 6, 7, 7, 9), -3.0), Hypothesis((), -4.0), Hypothesis((5,), -4.5)],
    [Hypothesis((11, 12, 13), -1.0), Hypothesis((1, 12), -1.1)],
    [Hypothesis((), 0.0)],
    [Hypothesis((8, 9), -2.0)],
]


@pytest.fixture(params=["mamba", "mamba2", "s4d"])
def model(request):
    decoder = replace(CONFIG.decoder, mixer=replace(CONFIG.decoder.mixer, kind=request.param))
    model = SambaASR(replace(CONFIG, decoder=decoder)).eval().double()
    with torch.no_grad():  # random heads say much the same always: spread their answers
        model.decoder.out_proj.weight *= 8
        model.ctc_head.weight *= 4
    return model


@pytest.fixture
def encoder_out():
    return torch.randn(4, 20, CONFIG.d_model, dtype=torch.float64)


def by_steps(model, states, length, text):
    """The decoder's score of one text, alone, a token at a time."""
    state = model.decoder.read_memory(states[None, :length], torch.tensor([length]))
    total = 0.0
    for read, said in zip([BOS_ID, *text], [*text, EOS_ID], strict=True):
        logits, state = model.decoder.step(torch.tensor([read]), state)
        total += logits.log_softmax(-1)[0, said].item()
    return total


@torch.no_grad()
def test_texts_of_different_recordings_are_scored_as_if_alone(model, encoder_out):
    owners = [0, 0, 0, 1, 1, 3]
    texts = [h.tokens for row in N_BEST for h in row if row is not N_BEST[2]]
    state = model.decoder.read_memory(encoder_out, LENGTHS).reorder(torch.tensor(owners))
    expected = [by_steps(model, encoder_out[i], int(LENGTHS[i]), text) for i, text in zip(owners, texts, strict=True)]
    assert decoder_log_probs(model.decoder, state, texts).tolist() == pytest.approx(expected, rel=1e-9)
    assert len({round(score, 3) for score in expected}) == len(expected)


@torch.no_grad()
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("length_bonus", [-3.0, 0.0, 5.0, 50.0])
def test_the_best_weighted_sum_wins(model, encoder_out, ctc_weight, length_bonus):
    expected = []
    for row, states, length in zip(N_BEST, encoder_out, LENGTHS.tolist(), strict=True):
        totals = [
            ctc_weight * h.log_prob
            + (1 - ctc_weight) * by_steps(model, states, length, h.tokens)
            + length_bonus * len(h.tokens)
            for h in row
        ]
        expected.append(list(row[totals.index(max(totals))].tokens))
    assert rescore(model.decoder, encoder_out, LENGTHS, N_BEST, ctc_weight, length_bonus) == expected


@torch.no_grad()
def test_the_decoder_overrules_ctc_and_a_bonus_overrules_both(model, encoder_out):
    first = [list(row[0].tokens) for row in N_BEST]
    assert rescore(model.decoder, encoder_out, LENGTHS, N_BEST, 1.0) == first
    assert rescore(model.decoder, encoder_out, LENGTHS, N_BEST, 0.0)[0] == []
    assert rescore(model.decoder, encoder_out, LENGTHS, N_BEST, 0.0, length_bonus=1000.0)[0] == first[0]


@torch.no_grad()
def test_one_hypothesis_each_asks_no_decoder(model, encoder_out):
    n_best = [[Hypothesis((5,), -1.0)], [Hypothesis((), -1.0)], [Hypothesis((), 0.0)], [Hypothesis((7, 7), -1.0)]]
    assert rescore(None, encoder_out, LENGTHS, n_best, 0.5) == [[5], [], [], [7, 7]]


@torch.no_grad()
def test_the_search_is_prefix_beam_then_rescoring(model, encoder_out):
    for config in (RESCORING, replace(RESCORING, beam_size=3, ctc_weight=0.1)):
        log_probs = model.ctc_log_probs(encoder_out).numpy()
        n_best = [ctc_prefix_beam(log_probs[i, :length], config.beam_size) for i, length in enumerate(LENGTHS)]
        assert [len(row) for row in n_best] == [config.beam_size, config.beam_size, 1, config.beam_size]
        expected = rescore(model.decoder, encoder_out, LENGTHS, n_best, config.ctc_weight)
        assert search_tokens(model, encoder_out, LENGTHS, config) == expected


@torch.no_grad()
def test_with_all_weight_on_ctc_the_prefix_beam_decides(model, encoder_out):
    log_probs = model.ctc_log_probs(encoder_out).numpy()
    best = [list(ctc_prefix_beam(log_probs[i, :length], 8)[0].tokens) for i, length in enumerate(LENGTHS)]
    assert search_tokens(model, encoder_out, LENGTHS, replace(RESCORING, ctc_weight=1.0)) == best
    assert search_tokens(model, encoder_out, LENGTHS, replace(RESCORING, ctc_weight=0.0)) != best


@torch.no_grad()
@pytest.mark.parametrize("ctc_weight", [0.0, 0.5])
def test_a_batch_equals_one_by_one(model, encoder_out, ctc_weight):
    config = replace(RESCORING, ctc_weight=ctc_weight)
    encoder_out = torch.where(torch.arange(20)[None, :, None] < LENGTHS[:, None, None], encoder_out, torch.nan)
    alone = [
        search_tokens(model, states[None, :length], torch.tensor([length]), config)[0]
        for states, length in zip(encoder_out, LENGTHS.tolist(), strict=True)
    ]
    assert search_tokens(model, encoder_out, LENGTHS, config) == alone
    assert alone[2] == [] and all(alone[i] for i in (0, 1, 3))


@torch.no_grad()
def test_special_tokens_are_never_said_and_nothing_is_nothing(model, encoder_out):
    model.ctc_head.bias[[BOS_ID, EOS_ID]] = 100.0
    for tokens in search_tokens(model, encoder_out, LENGTHS, RESCORING):
        assert not {BLANK_ID, BOS_ID, EOS_ID} & set(tokens)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert search_tokens(model, encoder_out[:0, :0], nothing, RESCORING) == []
    assert search_tokens(model, encoder_out[:2, :0], torch.zeros(2, dtype=torch.int64), RESCORING) == [[], []]


def test_it_needs_no_torch_no_grad(model, encoder_out):
    assert search_tokens(model, encoder_out, LENGTHS, RESCORING)
