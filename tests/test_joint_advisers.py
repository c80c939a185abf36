"""Joint search with a language model and piece scorers: against every text and every way to read it."""

import itertools
import math

import numpy as np
import pytest
import torch
from joint_cases import check_exact, search_one
from test_joint_tokens import PIECES, SPELLINGS, WIDE, build, every_text, random_case, readings, spelling_of_model

from samba_asr.config import LanguageModelConfig, MixerConfig, SearchConfig
from samba_asr.decoding.advisers import Advisers
from samba_asr.decoding.joint import joint_beam
from samba_asr.decoding.pool import Pool
from samba_asr.decoding.search import search_stretches, search_tokens
from samba_asr.decoding.timing import Timing
from samba_asr.model.language_model import LanguageModel
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

PLACE = 2
pool_init = Pool.__init__


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """A search that listens in one place always, so that scores depend on the text alone."""
    monkeypatch.setattr(Timing, "begin", lambda self: PLACE)
    monkeypatch.setattr(Timing, "following", lambda self, *args: PLACE)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return build("window")


@pytest.fixture
def language_model():
    torch.manual_seed(2)
    config = LanguageModelConfig(
        11, d_model=16, n_layers=2, d_ff=16, mixer=MixerConfig(expand=1, d_state=8, head_dim=8)
    )
    language_model = LanguageModel(config).eval().double()
    with torch.no_grad():
        language_model.embedding.weight *= 2
    return language_model


class Bigrams:
    """A piece scorer whose score depends on the last two pieces, and on which is the last."""

    favours = True

    def start(self):
        return BOS_ID

    def score(self, state, piece):
        return math.sin(3.0 * state + piece), piece

    def end(self, state):
        return math.cos(state)

    def hoped(self, state):
        return [4, 6]

    def total(self, text):
        return sum(math.sin(3.0 * a + b) for a, b in itertools.pairwise([BOS_ID, *text])) + math.cos(
            [BOS_ID, *text][-1]
        )


def next_token(logits):
    logits = logits.clone()
    logits[..., [BLANK_ID, BOS_ID]] = -torch.inf
    return logits.log_softmax(-1)[0]


def token_scores(model, language_model, start, tokens):
    """Return what the decoder and the language model say of each token and of the end, by their forward passes."""
    read, said = torch.tensor([[BOS_ID, *tokens]]), torch.tensor([*tokens, EOS_ID])
    length = torch.tensor([len(said)])
    decoder, _ = model.decoder(read, length, start, torch.full_like(read, PLACE))
    language, _ = language_model(read, length, language_model.initial_state(1))
    return [next_token(logits)[range(len(said)), said].sum().item() for logits in (decoder, language)]


def expected_scores(model, language_model, log_probs, start, ctc_weight, lm_weight, bigrams_weight):
    """Return each text's score: (1 - w) log sum over readings of exp(decoder + lm_weight / (1 - w) * LM), and so on."""
    share = 1 - ctc_weight
    scores = {}
    for text, ctc in every_text(log_probs).items():
        terms = []
        for tokens in readings(text):
            decoder, language = token_scores(model, language_model, start, tokens)
            terms.append((decoder + lm_weight / share * language) if share else language)
        said = (share or lm_weight) * math.log(math.fsum(map(math.exp, terms)))
        scores[text] = ctc_weight * ctc + said + 0.7 * len(text) + bigrams_weight * Bigrams().total(text)
    return scores


@torch.no_grad()
@pytest.mark.parametrize(
    ("ctc_weight", "lm_weight"), [(0.0, 0.6), (0.4, 0.6), (0.4, 6.0), (0.9, 1.0), (0.95, 1.0), (1.0, 0.6)]
)
@pytest.mark.parametrize("states", [0, 3])
def test_a_beam_that_drops_nothing_is_exact(model, language_model, states, ctc_weight, lm_weight):
    log_probs, state = random_case(model, states, 5)
    expected = expected_scores(model, language_model, log_probs, state, ctc_weight, lm_weight, 1.5)
    advisers = Advisers(language_model, [(1.5, Bigrams())], 0.5)
    found = search_one(
        log_probs,
        model.decoder,
        state,
        WIDE,
        ctc_weight,
        0.2,
        lm_weight=lm_weight,
        advisers=advisers,
        margin=math.inf,
        spelling=spelling_of_model(model),
    )
    check_exact(found, expected, tolerance=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("with_advisers", [False, True])
def test_recordings_together_are_searched_as_if_alone(model, language_model, with_advisers):
    advisers = Advisers(language_model, [(0.5, Bigrams())]) if with_advisers else Advisers()
    config = SearchConfig("joint", beam_size=4, ctc_weight=0.4, length_bonus=0.5, lm_weight=0.4)
    lengths = torch.tensor([9, 0, 14, 4, 9])
    encoder_out = torch.randn(5, 14, model.config.d_model, dtype=torch.float64)
    random = torch.randn(5, 14, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    utterances = [row[:length].numpy() for row, length in zip(random.mul(2).log_softmax(-1), lengths, strict=True)]
    spelling = spelling_of_model(model)
    together = joint_beam(
        utterances, model.decoder, model.decoder.read_memory(encoder_out, lengths), config, advisers, spelling=spelling
    )
    assert len({texts[0].tokens for texts in together}) == 4 or len(together[0]) > 1
    for row, (log_probs, length) in enumerate(zip(utterances, lengths, strict=True)):
        memory = model.decoder.read_memory(encoder_out[row : row + 1, :length], length[None])
        (alone,) = joint_beam([log_probs], model.decoder, memory, config, advisers, spelling=spelling)
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        assert [h.log_prob for h in alone] == pytest.approx([h.log_prob for h in together[row]], abs=1e-9)
    assert joint_beam([], model.decoder, None, config) == []


@torch.no_grad()
def test_where_nobody_else_counts_the_decoder_is_not_asked(model, monkeypatch):
    log_probs, state = random_case(model, 6, 1)
    asked = []
    monkeypatch.setattr(model.decoder, "step", lambda *args: asked.append(args))
    search_one(log_probs, model.decoder, state, 4, 1.0, spelling=spelling_of_model(model))
    assert not asked


@torch.no_grad()
def test_places_in_the_pool_are_given_back(model, language_model, monkeypatch):
    pools = []
    monkeypatch.setattr(Pool, "__init__", lambda self, *args: (pools.append(self), pool_init(self, *args))[1])
    config = SearchConfig("joint", beam_size=4, ctc_weight=0.3, lm_weight=0.4)
    states = torch.randn(3, 40, model.config.d_model, dtype=torch.float64)
    memory = model.decoder.read_memory(states, torch.tensor([40, 25, 8]))
    random = torch.randn(3, 40, 7, dtype=torch.float64).mul(3).log_softmax(-1)
    recordings = [random[0].numpy(), random[1, :25].numpy(), random[2, :8].numpy()]
    joint_beam(recordings, model.decoder, memory, config, Advisers(language_model), spelling=spelling_of_model(model))
    (pool,) = pools
    assert sorted(pool._free) == list(range(3, pool._size)) and pool._size < 400


class Hopeful(Bigrams):
    """Hopes for 5 after 4, and rewards it."""

    def score(self, state, piece):
        return 6.0 if (state, piece) == (4, 5) else 0.0, piece

    def end(self, state):
        return 0.0

    def hoped(self, state):
        return [5, 5] if state == 4 else []


HOPING = Advisers(None, [(1.0, Hopeful())])


@torch.no_grad()
def test_hoped_pieces_start_where_no_other_may(model):
    """CTC hears 4, and then 6 where 5 is 7 nats behind: beyond the margin, but hoped for."""
    log_probs = np.full((4, 7), -30.0)
    log_probs[0, 4] = log_probs[1, BLANK_ID] = log_probs[2, 6] = log_probs[3, BLANK_ID] = 0.0
    log_probs[2, 5] = -7.0
    settings = {"beam_size": 8, "ctc_weight": 1.0, "margin": 5.0, "spelling": spelling_of_model(model)}
    _, state = random_case(model, 4, 0)
    plain = search_one(log_probs, model.decoder, state, **settings)
    hoped = search_one(log_probs, model.decoder, state, advisers=HOPING, **settings)
    assert [h.tokens for h in plain] == [(4, 6)]
    assert [h.tokens for h in hoped] == [(4, 6), (4, 5)]
    assert hoped[1].log_prob == pytest.approx(-1.0, abs=1e-6)  # counted once, though it is hoped for twice
    log_probs[2, 5] = -9.5
    assert [h.tokens for h in search_one(log_probs, model.decoder, state, advisers=HOPING, **settings)] == [(4, 6)]


@torch.no_grad()
def test_what_is_hoped_for_is_found_though_decoder_and_ctc_agree_on_another(model):
    """Both would go on with 6; 5 is too unlikely for the decoder to be considered, but hoped for."""
    model.decoder.out_proj.bias[[5, 7, 8, 9, 10]] -= 40.0
    log_probs = np.full((4, 7), -30.0)
    log_probs[0, 4] = log_probs[1, BLANK_ID] = log_probs[2, 6] = log_probs[3, BLANK_ID] = 0.0
    log_probs[2, 5] = -7.0
    advisers = Advisers(None, [(4.0, Hopeful())])
    settings = {"beam_size": 4, "ctc_weight": 0.8, "advisers": advisers, "spelling": spelling_of_model(model)}
    _, state = random_case(model, 4, 0)
    found = search_one(log_probs, model.decoder, state, **settings)
    exact = search_one(log_probs, model.decoder, state, margin=math.inf, **{**settings, "beam_size": WIDE})
    assert found[0].tokens == exact[0].tokens == (4, 5)
    # token 7 is another way to read it, as unlikely, and need not be found
    assert exact[0].log_prob - 1.0 <= found[0].log_prob <= exact[0].log_prob + 1e-9


@torch.no_grad()
def test_what_is_hoped_for_is_read_before(model):
    """A prefix that only a hoped piece lengthens is one that the decoder has to read."""
    log_probs = np.full((4, 7), -30.0)
    log_probs[0, 4] = log_probs[3, BLANK_ID] = 0.0
    log_probs[1, 4] = log_probs[2, 4] = -0.001  # 4 repeats itself: no piece starts but the one hoped for
    log_probs[2, 5] = -7.0
    log_probs[1, BLANK_ID] = -math.inf
    _, state = random_case(model, 4, 0)
    settings = {"beam_size": 8, "ctc_weight": 0.8, "advisers": HOPING, "spelling": spelling_of_model(model)}
    found = search_one(log_probs, model.decoder, state, margin=6.5, **settings)
    exact = search_one(log_probs, model.decoder, state, margin=math.inf, **settings)
    assert found[0].tokens == exact[0].tokens == (4, 5)
    assert exact[0].log_prob - 0.01 <= found[0].log_prob <= exact[0].log_prob + 1e-9  # readings far behind are lost


class Grudging(Bigrams):
    """Takes 3 nats off for each 4, and adds nothing."""

    favours = False

    def score(self, state, piece):
        return -3.0 * (piece == 4), piece

    def end(self, state):
        return 0.0

    def hoped(self, state):
        return []


@torch.no_grad()
@pytest.mark.parametrize("favours", [False, True])
def test_who_only_takes_away_is_heard(model, favours, monkeypatch):
    """The texts are all those found without it, each with what it takes away."""
    monkeypatch.setattr(Grudging, "favours", favours)
    log_probs, state = random_case(model, 3, 3)
    settings = {"margin": math.inf, "spelling": spelling_of_model(model)}
    plain = search_one(log_probs, model.decoder, state, WIDE, 0.3, 1.0, **settings)
    expected = {h.tokens: h.log_prob - 1.5 * 3.0 * h.tokens.count(4) for h in plain}
    advisers = Advisers(None, [(1.5, Grudging())])
    found = search_one(log_probs, model.decoder, state, WIDE, 0.3, 1.0, advisers=advisers, **settings)
    check_exact(found, expected)
    assert [h.tokens for h in found] != [h.tokens for h in plain]


@torch.no_grad()
def test_an_advisers_weight_of_nothing_changes_nothing(model, language_model):
    log_probs, state = random_case(model, 8, 2)
    settings = {"margin": math.inf, "spelling": spelling_of_model(model)}
    plain = search_one(log_probs, model.decoder, state, 6, 0.3, 1.0, **settings)
    advised = search_one(
        log_probs, model.decoder, state, 6, 0.3, 1.0, advisers=Advisers(language_model, [(0.0, Bigrams())]), **settings
    )
    assert advised == plain
    other = search_one(
        log_probs, model.decoder, state, 6, 0.3, 1.0, lm_weight=2.0, advisers=Advisers(language_model), **settings
    )
    assert other != plain


@torch.no_grad()
def test_searches_that_ask_nobody_refuse_advisers(model, language_model):
    states, lengths = torch.randn(1, 5, model.config.d_model, dtype=torch.float64), torch.tensor([5])
    log_probs = np.zeros((1, 5, 7))
    for search in ("ctc", "autoregressive", "rescoring"):
        with pytest.raises(ValueError, match=rf"search \('{search}'\) must be 'joint' where a language model"):
            search_tokens(model, states, lengths, SearchConfig(search), Advisers(language_model))
        with pytest.raises(ValueError, match="must be 'joint'"):
            search_stretches(model, states, lengths, log_probs, SearchConfig(search), Advisers(language_model))


@torch.no_grad()
def test_n_best_are_the_beams_texts(model):
    states = torch.randn(2, 30, model.config.d_model, dtype=torch.float64)
    lengths = torch.tensor([30, 11])
    config = SearchConfig("joint", beam_size=5, ctc_weight=0.5, length_bonus=0.3)
    log_probs = model.ctc_log_probs(states, lengths).numpy()
    found = search_stretches(model, states, lengths, log_probs, config)
    assert [next(stretch.tokens for stretch in row) for row in found] == search_tokens(model, states, lengths, config)
    for row in found:
        (stretch,) = row
        assert list(stretch.n_best[0].tokens) == stretch.tokens
        scores = [hypothesis.log_prob for hypothesis in stretch.n_best]
        assert scores == sorted(scores, reverse=True) and len({h.tokens for h in stretch.n_best}) == len(scores) <= 5
    assert any(len(row[0].n_best) > 1 for row in found)


def test_the_pieces_are_those_of_the_tokens():
    assert set(PIECES) == {piece for spelt in SPELLINGS.values() for piece in spelt}
