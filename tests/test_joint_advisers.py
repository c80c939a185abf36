"""Joint search with a language model and piece scorers: against every text and every way to read it."""

import itertools
import math

import numpy as np
import pytest
import torch
from joint_cases import search_one
from test_readings import PIECES, SPELLINGS, WIDE, build, every_text, random_case, readings, tree_of

from samba_asr.config import LanguageModelConfig, MixerConfig, SearchConfig
from samba_asr.decoding.advisers import Advisers
from samba_asr.decoding.joint import joint_beam
from samba_asr.decoding.readings import Reader
from samba_asr.decoding.search import search_stretches, search_tokens
from samba_asr.decoding.timing import Timing
from samba_asr.model.language_model import LanguageModel
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

PLACE = 2


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """A search that listens in one place always and gives up no reading, so that scores depend on the text alone."""
    monkeypatch.setattr(Timing, "begin", lambda self: PLACE)
    monkeypatch.setattr(Timing, "after", lambda self, *args: PLACE)
    monkeypatch.setattr(Reader.__init__, "__defaults__", (math.inf,))


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
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("states", [0, 3])
def test_a_beam_that_drops_nothing_is_exact(model, language_model, states, ctc_weight):
    log_probs, state = random_case(model, states, 5)
    expected = expected_scores(model, language_model, log_probs, state, ctc_weight, 0.6, 1.5)
    advisers = Advisers(language_model, [(1.5, Bigrams())])
    found = search_one(
        log_probs,
        model.decoder,
        state,
        WIDE,
        ctc_weight,
        0.7,
        lm_weight=0.6,
        advisers=advisers,
        margin=math.inf,
        tree=tree_of(model),
    )
    assert len(found) == len(expected)
    assert [h.log_prob for h in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-8)
    for hypothesis in found:
        assert hypothesis.log_prob == pytest.approx(expected[hypothesis.tokens], abs=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("with_advisers", [False, True])
def test_recordings_together_are_searched_as_if_alone(model, language_model, with_advisers):
    advisers = Advisers(language_model, [(0.5, Bigrams())]) if with_advisers else Advisers()
    config = SearchConfig("joint", beam_size=4, ctc_weight=0.4, length_bonus=0.5, lm_weight=0.4)
    lengths = torch.tensor([9, 0, 14, 4, 9])
    encoder_out = torch.randn(5, 14, model.config.d_model, dtype=torch.float64)
    random = torch.randn(5, 14, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    utterances = [row[:length].numpy() for row, length in zip(random.mul(2).log_softmax(-1), lengths, strict=True)]
    tree = tree_of(model)
    together = joint_beam(
        utterances, model.decoder, model.decoder.read_memory(encoder_out, lengths), config, advisers, tree=tree
    )
    assert len({texts[0].tokens for texts in together}) == 4 or len(together[0]) > 1
    for row, (log_probs, length) in enumerate(zip(utterances, lengths, strict=True)):
        memory = model.decoder.read_memory(encoder_out[row : row + 1, :length], length[None])
        (alone,) = joint_beam([log_probs], model.decoder, memory, config, advisers, tree=tree)
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        assert [h.log_prob for h in alone] == pytest.approx([h.log_prob for h in together[row]], abs=1e-9)
    assert joint_beam([], model.decoder, None, config) == []


@torch.no_grad()
def test_where_nobody_else_counts_the_decoder_is_not_asked(model, monkeypatch):
    log_probs, state = random_case(model, 6, 1)
    asked = []
    monkeypatch.setattr(model.decoder, "step", lambda *args: asked.append(args))
    search_one(log_probs, model.decoder, state, 4, 1.0, tree=tree_of(model))
    assert not asked


@torch.no_grad()
def test_an_advisers_weight_of_nothing_changes_nothing(model, language_model):
    log_probs, state = random_case(model, 8, 2)
    settings = {"margin": math.inf, "tree": tree_of(model)}
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
