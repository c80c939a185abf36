"""Cutting long recordings at pauses, and the searches that decode them stretch by stretch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from joint_cases import search_one
from model_fixture import CONFIG

from samba_asr.config import SearchConfig
from samba_asr.decoding import search as search_module
from samba_asr.decoding import stretches as stretches_module
from samba_asr.decoding.greedy import autoregressive_greedy, ctc_greedy
from samba_asr.decoding.prefix_beam import ctc_prefix_beam
from samba_asr.decoding.rescoring import rescore
from samba_asr.decoding.search import search_tokens
from samba_asr.decoding.stretches import LONGEST_SECONDS, Stretch, cut_at_blanks, stretch_batches
from samba_asr.model.asr import SambaASR
from samba_asr.text.tokenizer import BLANK_ID, EOS_ID, Tokenizer

SEARCHES = ("autoregressive", "rescoring", "joint")


def log_probs_of(path, sure=0.9):
    """(states, 8): a state's own token is likely, the others share the rest; sure: one number, or one a state."""
    probs = np.zeros((len(path), 8))
    probs[:] = ((1 - np.broadcast_to(sure, len(path))) / 7)[:, None]
    probs[np.arange(len(path)), path] = sure
    return np.log(probs)


def random_log_probs(states, seed, blanks=0.6):
    random = np.random.default_rng(seed)
    path = np.where(random.random(states) < blanks, BLANK_ID, random.integers(4, 8, states))
    return log_probs_of(path, random.uniform(0.3, 0.95, states))


def slow_cut(log_probs, low, high):
    """The same cut from the definition: every stretch of states is looked at."""
    blank = [row.argmax() == BLANK_ID for row in log_probs]
    best, cut = 0.0, None
    for start in range(low, high):
        for end in range(start + 1, high + 1):
            total = np.exp(log_probs[start:end, BLANK_ID]).sum()
            if all(blank[start:end]) and total > best:
                best, cut = total, -((-start - end) // 2)  # the middle, rounded up
    return cut or low + 1 + int(log_probs[low:high, BLANK_ID].argmax())


@pytest.mark.parametrize("blanks", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("longest", [1, 2, 3, 4, 5, 8, 13])
def test_all_states_once_none_too_long_and_each_cut_the_best(longest, blanks):
    for length in range(50):
        log_probs = random_log_probs(60, seed=length, blanks=blanks)
        stretches = cut_at_blanks(log_probs, length, longest)
        assert [state for start, end in stretches for state in range(start, end)] == list(range(length))
        assert all(1 <= end - start <= longest for start, end in stretches)
        for start, end in stretches[:-1]:
            assert end == slow_cut(log_probs, start + longest // 2, min(start + longest, length - longest // 4))
        if len(stretches) > 1:
            assert stretches[-1][1] - stretches[-1][0] >= longest // 4
        if length <= longest:
            assert len(stretches) == bool(length)


def cut_of(path, longest, sure=0.9):
    first, *_ = cut_at_blanks(log_probs_of(path, sure), len(path), longest)
    return first[1]


SPEECH = [5, 6] * 10


def with_pauses(*pauses):
    path = list(SPEECH)
    for start, end in pauses:
        path[start:end] = [BLANK_ID] * (end - start)
    return path


def test_hand_made_cuts():
    assert cut_of(with_pauses((8, 9)), 12) == 9  # the only one
    assert cut_of(with_pauses((7, 8), (9, 12)), 14) == 11  # the longest
    assert cut_of(with_pauses((0, 5), (8, 9)), 14) == 9  # the longest is too early
    assert cut_of(with_pauses((8, 9), (14, 20)), 14) == 9  # the longest is too late
    assert cut_of(with_pauses((2, 12)), 14) == 10  # a pause counts from the half on
    sure = np.full(20, 0.9)
    for surer, cut in ((7, 8), (10, 11)):
        sure[[7, 10]] = 0.6
        sure[surer] = 0.8
        assert cut_of(with_pauses((7, 8), (10, 11)), 14, sure) == cut


def test_without_a_pause_the_likeliest_blank():
    log_probs = log_probs_of(SPEECH)
    for state in (7, 10):
        some = log_probs.copy()
        some[state, BLANK_ID] += 0.5
        some[3, BLANK_ID] += 1.0  # too early
        assert cut_at_blanks(some, len(some), 14)[0] == (0, state + 1)


def test_padding_is_not_looked_at():
    path = [5] * 15 + [BLANK_ID] * 5
    assert cut_at_blanks(log_probs_of(path), 15, 14) == cut_at_blanks(log_probs_of(path[:15]), 15, 14)
    assert cut_at_blanks(log_probs_of(path)[:0], 0, 14) == []


def test_the_silence_at_the_end_is_no_stretch_of_its_own():
    path = with_pauses((9, 10), (15, 20))
    assert cut_at_blanks(log_probs_of(path), 20, 19) == [(0, 10), (10, 20)]


@pytest.mark.parametrize("longest", [0, -3])
def test_nothing_fits_into_no_states(longest):
    with pytest.raises(ValueError, match=rf"longest \({longest}\) must be positive"):
        cut_at_blanks(log_probs_of(SPEECH), 20, longest)


def test_cuts_at_pauses_leave_the_best_path_s_text_as_it_is():
    for seed in range(30):
        log_probs = random_log_probs(100, seed, blanks=0.7)
        stretches = cut_at_blanks(log_probs, 100, 20)
        assert len(stretches) >= 5
        whole = ctc_greedy(torch.from_numpy(log_probs)[None], torch.tensor([100]))[0]
        parts = [ctc_greedy(torch.from_numpy(log_probs[a:b])[None], torch.tensor([b - a]))[0] for a, b in stretches]
        assert [token for part in parts for token in part] == whole


def test_stretches_come_in_order_and_few_at_a_time(monkeypatch):
    monkeypatch.setattr(stretches_module, "STRETCHES_AT_ONCE", 2)
    encoder_out = torch.randn(2, 9, 3)
    stretches = [Stretch(0, 0, 4), Stretch(1, 0, 3), Stretch(1, 3, 9)]
    batches = list(stretch_batches(encoder_out, stretches))
    assert [batch for batch, _, _ in batches] == [stretches[:2], stretches[2:]]
    assert [lengths.tolist() for _, _, lengths in batches] == [[4, 3], [6]]
    assert torch.equal(batches[0][1][0], encoder_out[0, :4])
    assert torch.equal(batches[0][1][1], torch.cat([encoder_out[1, :3], torch.zeros(1, 3)]))
    assert torch.equal(batches[1][1][0], encoder_out[1, 3:])
    assert list(stretch_batches(encoder_out, [])) == []


def test_joined_tokens_are_joined_words():
    texts = ["mister quilter is", "the apostle of the middle", "classes"]
    tokenizer = Tokenizer.train(texts, vocab_size=24)
    tokens = [token for text in texts for token in tokenizer.encode(text)]
    assert tokenizer.decode(tokens) == " ".join(texts)


LENGTHS = torch.tensor([55, 10, 0, 23, 7])


@pytest.fixture
def model():
    model = SambaASR(CONFIG).eval().double()
    with torch.no_grad():  # random heads say much the same always: spread their answers
        model.decoder.out_proj.weight *= 8
        model.decoder.out_proj.bias[EOS_ID] += 2.0
        model.ctc_head.weight *= 4
    return model


@pytest.fixture
def encoder_out():
    states = torch.randn(5, 55, CONFIG.d_model, dtype=torch.float64)
    return torch.where(torch.arange(55)[None, :, None] < LENGTHS[:, None, None], states, torch.nan)


@pytest.fixture
def ten_states(monkeypatch):
    """Stretches of ten states, three at once."""
    monkeypatch.setattr(search_module, "LONGEST_SECONDS", 0.4)
    monkeypatch.setattr(stretches_module, "STRETCHES_AT_ONCE", 3)


def whole(model, states, lengths, config):
    """The search that knows no stretches."""
    caps = torch.ceil(lengths * 0.04 * config.max_tokens_per_second).long()
    if config.search == "autoregressive":
        return autoregressive_greedy(model.decoder, states, lengths, caps)
    log_probs = model.ctc_log_probs(states).numpy()
    if config.search == "joint":
        memory = [
            model.decoder.read_memory(row[None, :n], torch.tensor([n])) for row, n in zip(states, lengths, strict=True)
        ]
        rows = zip(log_probs, lengths, memory, caps.tolist(), strict=True)
        settings = (config.beam_size, config.ctc_weight, config.length_bonus)
        found = [search_one(row[:n], model.decoder, state, *settings, most=[cap]) for row, n, state, cap in rows]
        return [list(texts[0].tokens) for texts in found]
    n_best = [ctc_prefix_beam(row[:length], config.beam_size) for row, length in zip(log_probs, lengths, strict=True)]
    return rescore(model.decoder, states, lengths, n_best, config.ctc_weight)


@torch.no_grad()
@pytest.mark.parametrize("search", SEARCHES)
def test_up_to_thirty_seconds_nothing_changes(model, search):
    config = SearchConfig(search)
    limit = round(LONGEST_SECONDS / 0.04)
    states = torch.randn(2, limit + 1, CONFIG.d_model, dtype=torch.float64)
    lengths = torch.tensor([limit, 30])
    assert limit == 750
    assert search_tokens(model, states, lengths, config) == whole(model, states, lengths, config)
    longer = torch.tensor([limit + 1, 30])
    first, second = search_tokens(model, states, longer, config)
    assert [second] == whole(model, states[1:], longer[1:], config)
    assert [first] != whole(model, states[:1], longer[:1], config)


@torch.no_grad()
@pytest.mark.parametrize("search", SEARCHES)
def test_a_long_one_is_its_stretches_decoded_singly(model, encoder_out, ten_states, search):
    config = SearchConfig(search)
    expected = []
    for states, length in zip(encoder_out, LENGTHS.tolist(), strict=True):
        log_probs = model.ctc_log_probs(states).numpy()
        parts = [
            whole(model, states[None, start:end], torch.tensor([end - start]), config)[0]
            for start, end in cut_at_blanks(log_probs, length, 10)
        ]
        assert len(parts) == (length > 0) or sum(map(bool, parts)) > 2
        expected.append([token for part in parts for token in part])
    assert search_tokens(model, encoder_out, LENGTHS, config) == expected
    assert expected[0] != whole(model, encoder_out[:1], LENGTHS[:1], config)[0]


@torch.no_grad()
@pytest.mark.parametrize("search", SEARCHES)
def test_a_batch_equals_one_by_one(model, encoder_out, ten_states, search):
    alone = [
        search_tokens(model, states[None, :length], torch.tensor([length]), SearchConfig(search))[0]
        for states, length in zip(encoder_out, LENGTHS.tolist(), strict=True)
    ]
    assert search_tokens(model, encoder_out, LENGTHS, SearchConfig(search)) == alone
    assert [bool(tokens) for tokens in alone] == [True, True, False, True, True]


@torch.no_grad()
@pytest.mark.parametrize("search", SEARCHES)
def test_the_decoder_never_reads_more_at_once(model, encoder_out, ten_states, search, monkeypatch):
    shapes = []
    read = model.decoder.read_memory
    monkeypatch.setattr(
        model.decoder, "read_memory", lambda out, lengths: shapes.append(out.shape) or read(out, lengths)
    )
    search_tokens(model, encoder_out, LENGTHS, SearchConfig(search))
    assert len(shapes) > 3
    assert max(shape[0] for shape in shapes) == 3 and max(shape[1] for shape in shapes) <= 10


@torch.no_grad()
def test_the_ctc_search_cuts_nothing(model, encoder_out, ten_states, monkeypatch):
    monkeypatch.setattr(search_module, "cut_at_blanks", None)
    expected = ctc_greedy(model.ctc_log_probs(encoder_out), LENGTHS)
    assert search_tokens(model, encoder_out, LENGTHS, SearchConfig("ctc")) == expected


@pytest.mark.parametrize("search", SEARCHES)
def test_it_needs_no_torch_no_grad(model, encoder_out, ten_states, search):
    assert search_tokens(model, encoder_out, LENGTHS, replace(SearchConfig(search), beam_size=2))[0]
