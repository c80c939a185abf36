"""Joint search with a decoder of longer tokens than CTC's pieces: against every text, and every way to read it."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joint_cases import check_exact, search_one
from model_fixture import CONFIG

from samba_asr.config import CTCConfig
from samba_asr.decoding.spelling import spelling_of
from samba_asr.decoding.timing import Timing
from samba_asr.model.alignment import align, listening_places
from samba_asr.model.asr import SambaASR
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

PIECES = [1, 4, 5, 6]
SPELLINGS = {1: (1,), 4: (4,), 5: (5,), 6: (6,), 7: (4, 5), 8: (4, 5, 6), 9: (5, 5), 10: (6, 4, 5, 4)}
"""Of all tokens that a text may hold."""
WIDE = 10_000
PLACE = 2
"""Where a window listens if nothing else is said."""


def build(listening, kind="mamba2"):
    decoder = replace(
        CONFIG.decoder,
        listening=listening,
        window_before=3,
        window_after=5,
        mixer=replace(CONFIG.decoder.mixer, kind=kind),
    )
    config = replace(CONFIG, vocab_size=11, decoder=decoder, ctc=CTCConfig(vocab_size=7, longest_spelling=4))
    model = SambaASR(config).eval().double()
    for token, pieces in SPELLINGS.items():
        model.spellings[token, : len(pieces)] = torch.tensor(pieces)
    with torch.no_grad():  # random decoders say much the same always: spread their answers
        model.decoder.out_proj.weight *= 4
        if listening == "window":
            for layer in (model.decoder.blocks[0].cross.kernel, model.decoder.blocks[0].cross.salience):
                layer.weight.normal_(std=0.3)
    return model


@pytest.fixture(params=[("state", "mamba"), ("state", "mamba2"), ("window", "mamba2")], ids="-".join)
def model(request):
    return build(*request.param)


@pytest.fixture
def one_place(monkeypatch):
    """A search that listens in one place always: then its decoder's scores depend on the text alone."""
    monkeypatch.setattr(Timing, "begin", lambda self: PLACE)
    monkeypatch.setattr(Timing, "following", lambda self, *args: PLACE)


def random_case(model, states, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(states, 7, generator=generator, dtype=torch.float64)
    encoder_out = torch.randn(1, max(states, 1), CONFIG.d_model, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1).numpy(), model.decoder.read_memory(encoder_out, torch.tensor([states]))


class Oracle:
    """The decoder's scores of texts in pieces, from all ways to read them, a token at a time."""

    def __init__(self, model, start):
        self.model, self.start, self.known = model, start, {}

    def follows(self, tokens):
        """Return the log-probabilities of what follows some tokens, and the state after them."""
        if tokens not in self.known:
            state = self.follows(tokens[:-1])[1] if tokens else self.start
            read = torch.tensor([tokens[-1] if tokens else BOS_ID])
            logits, state = self.model.decoder.step(read, state, places=torch.tensor([PLACE]))
            logits[:, [BLANK_ID, BOS_ID]] = -torch.inf
            self.known[tokens] = logits.log_softmax(-1)[0].tolist(), state
        return self.known[tokens]

    def score(self, tokens):
        return sum(self.follows(tokens[:i])[0][token] for i, token in enumerate(tokens))

    def said(self, text):
        """Return the log-probability of a whole text."""
        return math.log(
            math.fsum(math.exp(self.score(tokens) + self.follows(tokens)[0][EOS_ID]) for tokens in readings(text))
        )

    def begun(self, text):
        """Return the log-probability that what is said begins with a text."""
        return math.log(
            math.fsum(
                math.exp(self.score(tokens) + self.follows(tokens)[0][last])
                for end in range(len(text))
                for tokens in readings(text[:end])
                for last, spelt in SPELLINGS.items()
                if spelt[: len(text) - end] == text[end:]
            )
        )


def readings(text):
    """Return every sequence of tokens that is spelt like a text."""
    if not text:
        return [()]
    return [
        (token, *rest)
        for token, spelt in SPELLINGS.items()
        if text[: len(spelt)] == spelt
        for rest in readings(text[len(spelt) :])
    ]


def every_text(log_probs):
    """Return each text's log-probability under CTC, from all paths without begin and end, one by one."""
    texts = {}
    for path in itertools.product([BLANK_ID, *PIECES], repeat=len(log_probs)):
        text = tuple(piece for piece, _ in itertools.groupby(path) if piece != BLANK_ID)
        texts.setdefault(text, []).append(math.exp(sum(row[piece] for row, piece in zip(log_probs, path, strict=True))))
    return {text: math.log(math.fsum(probs)) for text, probs in texts.items()}


def spelling_of_model(model):
    return spelling_of(model.spellings, model.config.ctc_vocab_size)


def test_the_oracle_reads_by_hand():
    assert sorted(readings((4, 5, 6, 4))) == [(4, 5, 6, 4), (7, 6, 4), (8, 4)]
    assert sorted(readings((5, 5, 5))) == [(5, 5, 5), (5, 9), (9, 5)]


@torch.no_grad()
@pytest.mark.usefixtures("one_place")
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("states", "length_bonus"), [(0, 0.0), (1, 2.0), (4, 0.0), (4, 2.0)])
def test_a_beam_that_drops_nothing_is_exact(model, states, ctc_weight, length_bonus):
    log_probs, state = random_case(model, states, states)
    oracle = Oracle(model, state)
    expected = {
        text: ctc_weight * log_prob + (1 - ctc_weight) * oracle.said(text) + length_bonus * len(text)
        for text, log_prob in every_text(log_probs).items()
    }
    found = search_one(
        log_probs,
        model.decoder,
        state,
        WIDE,
        ctc_weight,
        length_bonus,
        margin=math.inf,
        spelling=spelling_of_model(model),
    )
    check_exact(found, expected)


@torch.no_grad()
@pytest.mark.usefixtures("one_place")
@pytest.mark.parametrize("beam_size", [1, 4])
def test_what_a_narrow_beam_finds_has_the_readings_that_it_found(model, beam_size):
    """Places in the pool are used again; with all the weight on the decoder, a text's score depends on its readings
    alone, and is that of the best of them at least."""
    lengths = []
    for seed in range(3):
        log_probs, state = random_case(model, 12, seed)
        oracle = Oracle(model, state)
        found = search_one(
            log_probs, model.decoder, state, beam_size, 0.0, 2.0, margin=math.inf, spelling=spelling_of_model(model)
        )
        assert 1 <= len(found) <= beam_size
        lengths.append(len(found[0].tokens))
        for text, score in found:
            ways = [oracle.score(tokens) + oracle.follows(tokens)[0][EOS_ID] for tokens in readings(text)]
            assert score <= oracle.said(text) + 2.0 * len(text) + 1e-8
            sums = [math.log(math.fsum(map(math.exp, some))) for some in subsets(ways)]
            assert min(abs(score - 2.0 * len(text) - each) for each in sums) < 1e-8
    assert max(lengths) > 4


def subsets(ways):
    """Return all choices of one way or more; of at most ten, or there would be too many."""
    best = sorted(ways, reverse=True)[:10]
    return [some for count in range(1, len(best) + 1) for some in itertools.combinations(best, count)]


@torch.no_grad()
@pytest.mark.parametrize("seed", range(5))
def test_where_ctc_is_sure_it_listens_as_training_does(seed):
    """With one text to choose from and one way to read it, its score is that of its alignment's places."""
    model = build("window")
    random = np.random.default_rng(seed)
    states = np.sort(random.choice(np.arange(1, 60), 8, replace=False)).tolist()
    pieces = (4 + random.integers(1, 3, 8).cumsum() % 3).tolist()  # none twice in a row
    probs = np.full((60, 7), 1e-5)
    for state in range(60):
        probs[state, dict(zip(states, pieces, strict=True)).get(state, BLANK_ID)] = 1 - 6e-5
    log_probs = np.log(probs)
    start = model.decoder.read_memory(torch.randn(1, 60, CONFIG.d_model, dtype=torch.float64), torch.tensor([60]))
    spelling = spelling_of(torch.where(torch.arange(11)[:, None] < 7, model.spellings, -1), 7)
    found, *_ = search_one(log_probs, model.decoder, start, 4, 0.7, spelling=spelling)
    assert found.tokens == tuple(pieces)
    (firsts,) = align(log_probs[None], [60], [pieces])
    places = torch.tensor([listening_places(firsts, [1] * 8, 60)])
    targets = torch.tensor([[*pieces, EOS_ID]])

    def total(places):
        logits, _ = model.decoder(torch.tensor([[BOS_ID, *pieces]]), torch.tensor([9]), start, places)
        logits[..., [BLANK_ID, BOS_ID]] = -torch.inf
        said = logits.log_softmax(-1)[0].gather(1, targets.T).sum()
        ctc = -F.ctc_loss(torch.from_numpy(log_probs)[:, None], targets[:, :-1], (60,), (8,), reduction="sum")
        return float(0.7 * ctc + 0.3 * said)

    assert found.log_prob == pytest.approx(total(places), abs=2e-3)
    for token in range(9):  # each of them counts
        assert abs(total(places + torch.eye(9)[token].long()) - found.log_prob) > 2e-3


@torch.no_grad()
def test_after_a_long_token_it_listens_where_its_last_piece_ends():
    """As above, with tokens of several pieces, each said for two states."""
    model = build("window")
    probs = np.full((40, 7), 1e-5)
    said = {8: 4, 10: 5, 12: 6, 22: 4, 24: 5, 34: 4, 36: 5}  # tokens 8, 7 and 7
    for state in range(40):
        probs[state, said.get(state, said.get(state - 1, BLANK_ID))] = 1 - 6e-5
    log_probs = np.log(probs)
    start = model.decoder.read_memory(torch.randn(1, 40, CONFIG.d_model, dtype=torch.float64), torch.tensor([40]))
    long_ones = (torch.arange(11) == 7) | (torch.arange(11) == 8)
    spelling = spelling_of(torch.where(long_ones[:, None], model.spellings, -1), 7)
    found, *_ = search_one(log_probs, model.decoder, start, 4, 0.7, spelling=spelling)
    assert found.tokens == tuple(said.values())
    places = torch.tensor([listening_places(np.array(list(said)), [3, 2, 2], 40)])
    targets = torch.tensor([8, 7, 7, EOS_ID])

    def total(places):
        logits, _ = model.decoder(torch.tensor([[BOS_ID, 8, 7, 7]]), torch.tensor([4]), start, places)
        logits[..., [BLANK_ID, BOS_ID]] = -torch.inf
        spoken = logits.log_softmax(-1)[0, range(4), targets].sum()
        pieces = torch.tensor([list(said.values())])
        ctc = -F.ctc_loss(torch.from_numpy(log_probs)[:, None], pieces, (40,), (7,), reduction="sum")
        return float(0.7 * ctc + 0.3 * spoken)

    assert found.log_prob == pytest.approx(total(places), abs=2e-3)
    for token in range(4):
        assert abs(total(places + torch.eye(4)[token].long()) - found.log_prob) > 2e-3


@torch.no_grad()
def test_hopeless_numbers_do_not_underflow(model):
    log_probs = np.full((3, 7), -800.0)
    log_probs[range(3), [4, 4, 6]] = -1e-3
    _, state = random_case(model, 3, 0)
    best = search_one(log_probs, model.decoder, state, 4, 0.5, spelling=spelling_of_model(model))[0]
    assert best.tokens == (4, 6) and math.isfinite(best.log_prob)


@torch.no_grad()
def test_a_text_may_end_where_a_longer_token_was_likelier():
    """CTC hears 4 and no more; the decoder would rather have heard the whole of token 7, which is spelt 4, 5."""
    model = build("state")
    model.decoder.out_proj.bias[7] += 15
    log_probs = np.log(np.full((3, 7), 1e-9))
    log_probs[range(3), [BLANK_ID, 4, BLANK_ID]] = -1e-8
    _, state = random_case(model, 3, 0)
    best = search_one(log_probs, model.decoder, state, 8, 0.5, spelling=spelling_of_model(model))[0]
    assert best.tokens == (4,) and math.isfinite(best.log_prob)


@torch.no_grad()
@pytest.mark.usefixtures("one_place")
@pytest.mark.parametrize("ctc_weight", [0.9, 0.99])
def test_what_ctc_hears_is_found_though_the_decoder_expects_other_tokens(ctc_weight):
    """Though CTC does not rule out what the decoder expects, the narrowest beam finds the best text there is."""
    model = build("state")
    with torch.no_grad():
        model.decoder.out_proj.bias[[5, 6, 9]] += 1.5
        model.decoder.out_proj.bias[4] -= 1.5
    for seed in range(4):
        _, state = random_case(model, 5, seed)
        log_probs = np.full((5, 7), -4.0)
        log_probs[range(5), [BLANK_ID, 4, BLANK_ID, 1, BLANK_ID]] = 0.0
        log_probs -= np.logaddexp.reduce(log_probs, 1, keepdims=True)
        oracle = Oracle(model, state)
        expected = {
            text: ctc_weight * log_prob + (1 - ctc_weight) * oracle.said(text)
            for text, log_prob in every_text(log_probs).items()
            if len(text) < 4
        }
        best = max(expected, key=expected.__getitem__)
        found = search_one(log_probs, model.decoder, state, 1, ctc_weight, spelling=spelling_of_model(model))
        assert found[0].tokens == best == (4, 1)
