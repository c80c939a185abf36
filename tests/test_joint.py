"""Joint search against every path there is, the decoder's own steps, and the searches that it contains."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from joint_cases import check_exact, search_one
from model_fixture import CONFIG

from samba_asr.audio.load import load_audio
from samba_asr.config import SearchConfig
from samba_asr.decoding.greedy import autoregressive_greedy
from samba_asr.decoding.joint import joint_beam
from samba_asr.decoding.prefix_beam import ctc_prefix_beam
from samba_asr.decoding.rescoring import rescore
from samba_asr.decoding.search import search_tokens
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.pretrained import resolve_model
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

TOKENS = [1, 4, 5]
WIDE = 10_000


@pytest.fixture(params=["mamba", "mamba2", "s4d"])
def model(request):
    mixer = replace(CONFIG.decoder.mixer, kind=request.param)
    model = SambaASR(replace(CONFIG, vocab_size=6, decoder=replace(CONFIG.decoder, mixer=mixer))).eval().double()
    with torch.no_grad():  # random heads say much the same always: spread their answers
        model.decoder.out_proj.weight *= 8
        model.ctc_head.weight *= 4
    return model


def random_case(model, states, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(states, 6, generator=generator, dtype=torch.float64)
    encoder_out = torch.randn(1, max(states, 1), CONFIG.d_model, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1).numpy(), model.decoder.read_memory(encoder_out, torch.tensor([states]))


def with_decoder(model, log_probs, state):
    return log_probs, model.decoder, state


def every_text(log_probs):
    """Return each text's log-probability under CTC, from all paths without begin and end, one by one."""
    texts = {}
    for path in itertools.product([BLANK_ID, *TOKENS], repeat=len(log_probs)):
        text = tuple(token for token, _ in itertools.groupby(path) if token != BLANK_ID)
        texts.setdefault(text, []).append(math.exp(sum(row[token] for row, token in zip(log_probs, path, strict=True))))
    return {text: math.log(math.fsum(probs)) for text, probs in texts.items()}


def spoken(model, state, text):
    """The decoder's score of one text, a token at a time; blank and begin are never said."""
    total = 0.0
    for read, said in zip([BOS_ID, *text], [*text, EOS_ID], strict=True):
        logits, state = model.decoder.step(torch.tensor([read]), state)
        logits[:, [BLANK_ID, BOS_ID]] = -torch.inf
        total += logits.log_softmax(-1)[0, said].item()
    return total


@torch.no_grad()
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("length_bonus", [0.0, 2.0])
@pytest.mark.parametrize("states", [0, 1, 4])
def test_a_beam_that_drops_nothing_is_exact(model, states, ctc_weight, length_bonus):
    for seed in range(3):
        log_probs, state = random_case(model, states, seed)
        expected = {
            text: ctc_weight * log_prob + (1 - ctc_weight) * spoken(model, state, text) + length_bonus * len(text)
            for text, log_prob in every_text(log_probs).items()
        }
        found = search_one(log_probs, model.decoder, state, WIDE, ctc_weight, length_bonus, margin=math.inf)
        check_exact(found, expected)


@torch.no_grad()
def test_with_all_the_weight_on_ctc_it_finds_what_prefix_search_does(model):
    for seed in range(3):
        log_probs, state = random_case(model, 5, seed)
        found = search_one(log_probs, model.decoder, state, WIDE, 1.0, margin=math.inf)
        expected = ctc_prefix_beam(log_probs, WIDE, margin=math.inf)
        assert [h.tokens for h in found] == [h.tokens for h in expected]
        assert [h.log_prob for h in found] == pytest.approx([h.log_prob for h in expected], abs=1e-9)
        scores = dict(expected)
        for text, score in search_one(log_probs, model.decoder, state, 4, 1.0, margin=math.inf):
            assert score == pytest.approx(scores[text], abs=1e-9)  # a narrow beam, too, counts all paths of a text


def decoder_only(model, state, beam_size, most):
    """Beam search of the decoder alone, each text read from its begin; the end competes with what may go on."""
    going, ended = [()], {}
    while going:
        ranked = []
        for text in going:
            after = state
            for read in [BOS_ID, *text]:
                logits, after = model.decoder.step(torch.tensor([read]), after)
            logits[:, [BLANK_ID, BOS_ID]] = -torch.inf
            said = spoken_so_far(model, state, text)
            log_probs = logits.log_softmax(-1)[0].tolist()
            ranked.append((said + log_probs[EOS_ID], text, True))
            if len(text) < most:
                ranked += [(said + log_probs[token], (*text, token), False) for token in TOKENS]
        ranked = sorted(ranked, reverse=True)[:beam_size]
        ended |= {text: score for score, text, ends in ranked if ends}
        going = [text for _, text, ends in ranked if not ends]
    return sorted(((score, text) for text, score in ended.items()), reverse=True)[:beam_size]


def spoken_so_far(model, state, text):
    total = 0.0
    for read, said in zip([BOS_ID, *text], text, strict=False):
        logits, state = model.decoder.step(torch.tensor([read]), state)
        logits[:, [BLANK_ID, BOS_ID]] = -torch.inf
        total += logits.log_softmax(-1)[0, said].item()
    return total


@torch.no_grad()
@pytest.mark.parametrize("beam_size", [1, 2, 4, 9])
def test_with_no_weight_on_ctc_it_is_the_decoders_own_beam_search(model, beam_size):
    for seed in range(6):
        log_probs, state = random_case(model, 20, seed)
        found = search_one(log_probs, model.decoder, state, beam_size, 0.0, margin=math.inf, most=[5])
        expected = decoder_only(model, state, beam_size, 5)
        assert [h.tokens for h in found] == [text for _, text in expected]
        assert [h.log_prob for h in found] == pytest.approx([score for score, _ in expected], abs=1e-9)
        assert beam_size < 4 or len(found) > 1


@torch.no_grad()
@pytest.mark.parametrize("ctc_weight", [0.0, 0.5])
def test_a_narrow_beam_says_nothing_that_ctc_cannot(model, ctc_weight):
    model.decoder.out_proj.bias[EOS_ID] = -30.0  # it would go on and on
    for seed in range(4):
        log_probs, state = random_case(model, 3, seed)
        possible = every_text(log_probs)
        found = search_one(log_probs, model.decoder, state, 2, ctc_weight, margin=math.inf)
        assert found and all(text in possible and math.isfinite(score) for text, score in found)


@torch.no_grad()
def test_the_decoders_beam_of_one_is_greedy(model):
    states, lengths = torch.randn(6, 25, CONFIG.d_model, dtype=torch.float64), torch.tensor([20, 20, 19, 20, 25, 20])
    most = torch.tensor([9, 5, 3, 9, 9, 0])
    greedy = autoregressive_greedy(model.decoder, states, lengths, most)
    log_probs = [np.log(np.full((length, 6), 1 / 6)) for length in lengths.tolist()]
    memory = model.decoder.read_memory(states, lengths)
    config = SearchConfig("joint", beam_size=1, ctc_weight=0.0)
    found = joint_beam(log_probs, model.decoder, memory, config, margin=math.inf, most=most.tolist())
    assert [list(texts[0].tokens) for texts in found] == greedy and greedy[0] and greedy[5] == []


@torch.no_grad()
def test_wider_beams_find_better_texts(model):
    cases = [random_case(model, 5, seed) for seed in range(12)]
    means = []
    for size in (1, 3, 9, WIDE):
        found = [search_one(lp, model.decoder, state, size, 0.5, margin=math.inf)[0].log_prob for lp, state in cases]
        means.append(sum(found))
    assert all(wider >= narrower - 1e-9 for narrower, wider in itertools.pairwise(means)) and means[0] < means[3]


@torch.no_grad()
def test_a_margin_gives_up_what_is_far_behind_and_finds_the_same_text(model):
    counts = {}
    for margin in (math.inf, 12.0, 2.0):
        found = [
            search_one(*with_decoder(model, *random_case(model, 8, seed)), 8, 0.5, margin=margin) for seed in range(8)
        ]
        counts[margin] = sum(map(len, found)), [hypotheses[0].tokens for hypotheses in found]
    assert counts[2.0][0] < counts[12.0][0] <= counts[math.inf][0]
    assert counts[12.0][1] == counts[math.inf][1]


@torch.no_grad()
def test_a_bonus_lengthens_texts(model):
    lengths = []
    for bonus in (-20.0, 0.0, 20.0):
        cases = [random_case(model, 8, seed) for seed in range(10)]
        found = [search_one(lp, model.decoder, state, 4, 0.5, bonus)[0] for lp, state in cases]
        lengths.append(sum(len(h.tokens) for h in found))
    assert lengths[0] < lengths[1] < lengths[2]


@torch.no_grad()
def test_a_softened_choice_among_pieces_keeps_whether_one_is_said(model):
    for weight in (0.3, 0.7):
        log_probs, state = random_case(model, 5, 3)
        blank = np.exp(log_probs[:, :1])
        softened = np.concatenate([blank, (1 - blank) * (np.exp(log_probs[:, 1:]) / (1 - blank)) ** weight], 1)
        found = search_one(log_probs, model.decoder, state, WIDE, 0.5, 0.0, weight, margin=math.inf)
        expected = search_one(np.log(softened), model.decoder, state, WIDE, 0.5, margin=math.inf)
        assert [h.tokens for h in found] == [h.tokens for h in expected]
        assert [h.log_prob for h in found] == pytest.approx([h.log_prob for h in expected], abs=1e-9)
    with pytest.raises(ValueError, match=r"spelling_weight \(0\) must be above 0"):
        SearchConfig("joint", spelling_weight=0)


def test_refuses(model):
    log_probs, state = random_case(model, 3, 0)
    with pytest.raises(ValueError, match=r"beam_size \(0\)"):
        search_one(log_probs, model.decoder, state, 0, 0.5)


@torch.no_grad()
def test_a_batch_is_searched_as_if_alone(model):
    lengths = torch.tensor([20, 7, 0, 13])
    encoder_out = torch.randn(4, 20, CONFIG.d_model, dtype=torch.float64)
    config = SearchConfig("joint", beam_size=4, ctc_weight=0.3, length_bonus=1.0)
    together = search_tokens(model, encoder_out, lengths, config)
    alone = [
        search_tokens(model, states[None, :length], torch.tensor([length]), config)[0]
        for states, length in zip(encoder_out, lengths.tolist(), strict=True)
    ]
    assert together == alone and together[2] == [] and len(together[0]) > 3
    for changes in ({"ctc_weight": 0.9}, {"length_bonus": -3.0}):
        assert search_tokens(model, encoder_out, lengths, replace(config, **changes)) != together


@torch.inference_mode()
def test_on_speech_it_finds_no_worse_a_text_than_rescoring(clips):
    model, _ = load_checkpoint(resolve_model("samba-tiny-scratch"))
    waveform = torch.from_numpy(load_audio(clips[1][0]))[None]
    encoder_out, lengths = model.encode(waveform, torch.tensor([waveform.shape[1]]))
    log_probs = model.ctc_log_probs(encoder_out)
    state = model.decoder.read_memory(encoder_out, lengths)
    best = search_one(log_probs[0].numpy(), model.decoder, state, 8, 0.6, 0.5)[0]
    wide = search_one(log_probs[0].numpy(), model.decoder, state, 32, 0.6, 0.5, margin=20.0)[0]
    n_best = ctc_prefix_beam(log_probs[0].numpy(), 8)
    (rescored,) = rescore(model.decoder, encoder_out, lengths, [n_best], 0.6, 0.5)

    def total(text):
        targets = torch.tensor([list(text)])
        ctc = -torch.nn.functional.ctc_loss(
            log_probs.double().transpose(0, 1), targets, lengths, torch.tensor([len(text)]), BLANK_ID, reduction="sum"
        )
        return float(0.6 * ctc + 0.4 * spoken(model, state, text) + 0.5 * len(text))

    for found in (best, wide):
        assert found.log_prob == pytest.approx(total(found.tokens), abs=1e-3)
    assert wide.log_prob >= best.log_prob
    assert best.log_prob > total(rescored) + 1


@torch.no_grad()
def test_a_search_ends_soon_after_its_best_text(model, monkeypatch):
    """Texts that have ended count, too: those that go on need not outlast the recording to be given up."""
    log_probs = np.full((60, 6), -6.0)
    log_probs[:, BLANK_ID] = 0.0
    log_probs[[5, 9], [4, 5]] = 6.0
    log_probs -= np.logaddexp.reduce(log_probs, 1, keepdims=True)
    _, state = random_case(model, 60, 0)
    steps, step = [], model.decoder.step
    monkeypatch.setattr(model.decoder, "step", lambda *args: steps.append(args) or step(*args))
    found = search_one(log_probs, model.decoder, state, 4, 0.9)
    assert found[0].tokens == (4, 5) and 3 <= len(steps) < 20
