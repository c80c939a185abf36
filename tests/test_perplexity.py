"""Perplexities against a direct computation, and how they are counted."""

import math

import pytest
import torch

from samba_asr.config import LanguageModelConfig, MixerConfig
from samba_asr.evaluation.perplexity import TextScores, score_texts
from samba_asr.model.language_model import LanguageModel
from samba_asr.text.tokenizer import BOS_ID, EOS_ID, UNK_ID, Tokenizer

TEXTS = ["the cat sat", "a dog", "no bird sang that day", "a zebra sat on the mat"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat", "a dog barked", "no bird sang that day"] * 3, 27)


@pytest.fixture
def model(tokenizer):
    return LanguageModel(
        LanguageModelConfig(
            tokenizer.vocab_size, d_model=16, n_layers=2, d_ff=16, mixer=MixerConfig(d_state=8, head_dim=8)
        )
    )


def direct(model, tokenizer, text):
    """Return the nats that a text takes, a token after the other."""
    tokens, state, nats = tokenizer.encode(text), model.initial_state(1), 0.0
    for given, said in zip([BOS_ID, *tokens], [*tokens, EOS_ID], strict=True):
        logits, state = model.step(torch.tensor([given]), state)
        nats -= logits[0].log_softmax(-1)[said].item()
    return nats


@pytest.mark.parametrize("batch_tokens", [1, 16, 4000])
def test_scores_are_those_of_a_direct_computation(batch_tokens, model, tokenizer):
    model.double().eval()
    found = score_texts(model, tokenizer, TEXTS, batch_tokens)
    nats = sum(direct(model, tokenizer, text) for text in TEXTS)
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS)
    words = 3 + 2 + 5 + 6
    characters = 11 + 5 + 21 + 22
    assert found.nats == pytest.approx(nats, rel=1e-9)
    assert (found.texts, found.tokens, found.words, found.characters) == (4, tokens, words, characters)
    assert found.unknown == sum(tokenizer.encode(text).count(UNK_ID) for text in TEXTS) == 1  # the z
    assert found.token_perplexity == pytest.approx(math.exp(nats / (tokens + 4)))
    assert found.nats_per_token == pytest.approx(nats / (tokens + 4))
    assert found.word_perplexity == pytest.approx(math.exp(nats / (words + 4)))
    assert found.nats_per_character == pytest.approx(nats / (characters + 4))


@pytest.mark.parametrize(("batch_tokens", "batches"), [(1, 4), (14, 3), (4000, 1)])
def test_batches_hold_no_more_tokens_than_asked(batch_tokens, batches, model, tokenizer, monkeypatch):
    sizes, losses = [], model.losses
    monkeypatch.setattr(model, "losses", lambda tokens, lengths: sizes.append(tokens.shape) or losses(tokens, lengths))
    score_texts(model, tokenizer, ["a dog", "a dog", "a dog", "no bird sang that day"], batch_tokens)
    most = max(count * (tokens + 1) for count, tokens in sizes if count > 1) if batches < 4 else 0
    assert len(sizes) == batches and most <= batch_tokens


def test_dropout_has_no_say_and_training_goes_on_after(model, tokenizer):
    model.train()
    first, second = (score_texts(model, tokenizer, TEXTS) for _ in range(2))
    assert first == second and model.training


def test_sets_add_up(model, tokenizer):
    parts = [score_texts(model, tokenizer, TEXTS[:1]), score_texts(model, tokenizer, TEXTS[1:])]
    whole, added = score_texts(model, tokenizer, TEXTS), parts[0] + parts[1]
    assert added.nats == pytest.approx(whole.nats)
    for name in ("texts", "tokens", "words", "characters", "unknown"):
        assert getattr(added, name) == getattr(whole, name)


def test_nothing_to_score(model, tokenizer):
    with pytest.raises(ValueError, match="no text to score"):
        score_texts(model, tokenizer, [])


def test_a_hopeless_model_has_a_perplexity_too():
    assert TextScores(1e6, 1, 1, 1, 1, 0).word_perplexity == math.inf
