"""Minimum word error rate training: against closed forms, other counts and differences, with the shipped model."""

import copy
import dataclasses
import math

import pytest
import torch
from rapidfuzz.distance import Levenshtein
from torch.nn.utils.rnn import pad_sequence

from samba_asr.audio.load import load_audio
from samba_asr.config import ModelConfig, SearchConfig
from samba_asr.decoding.rescoring import decoder_log_probs
from samba_asr.decoding.search import search_stretches
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.pretrained import PRETRAINED
from samba_asr.text.normalization import normalize_for_training
from samba_asr.training.config import DataConfig, TrainingConfig
from samba_asr.training.minimum_wer import expected_errors, find_choices, minimum_wer_loss


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint(PRETRAINED / "samba-tiny-en")


@pytest.fixture(scope="module")
def noisy(shipped, clips):
    """States of the recordings in noise, so that texts have errors, and what was said."""
    model, _ = shipped
    torch.manual_seed(0)
    waveforms = [torch.from_numpy(load_audio(path)) for path, _ in clips]
    waveforms = [waveform + 0.03 * torch.randn_like(waveform) for waveform in waveforms]
    with torch.no_grad():
        states, lengths = model.encode(pad_sequence(waveforms, batch_first=True), torch.tensor([*map(len, waveforms)]))
    return states, lengths, [normalize_for_training(text) for _, text in clips]


def loss_of(model, tokenizer, states, lengths, references, texts):
    choices = find_choices(model, tokenizer, states.detach(), lengths, references, texts)
    return minimum_wer_loss(model, states, lengths, choices, sum(len(text.split()) for text in references))


def test_expected_errors_are_a_weighted_mean():
    scores = torch.tensor([-3.0, -1.5, -2.0], dtype=torch.float64, requires_grad=True)
    errors = torch.tensor([2.0, 5.0, 0.0], dtype=torch.float64)
    shares = [math.exp(score) for score in scores.tolist()]
    mean = sum(s * e for s, e in zip(shares, errors.tolist(), strict=True)) / sum(shares)
    loss = expected_errors(scores, errors)
    assert loss.item() == pytest.approx(mean, rel=1e-12)
    loss.backward()
    # Of the paper, equation 6: each text's share times how much worse than the mean it is.
    by_hand = [s / sum(shares) * (e - mean) for s, e in zip(shares, errors.tolist(), strict=True)]
    assert scores.grad.tolist() == pytest.approx(by_hand, rel=1e-12)


def test_choices_are_what_the_search_finds(shipped, noisy):
    model, tokenizer = shipped
    states, lengths, references = noisy
    config = dataclasses.replace(model.config.search, search="joint", beam_size=4)
    found = search_stretches(model, states, lengths, model.ctc_log_probs(states, lengths).detach().numpy(), config)
    choices = {c.row: c for c in find_choices(model, tokenizer, states, lengths, references, 4)}
    assert len(choices) >= 3
    for row, (stretch,) in enumerate(found):
        words = [tokenizer.decode(list(text.tokens)).split() for text in stretch.n_best]
        errors = [Levenshtein.distance(references[row].split(), heard) for heard in words]
        if len(set(errors)) == 1:
            assert row not in choices
            continue
        assert choices[row].errors == errors
        assert choices[row].scores == pytest.approx([text.log_prob for text in stretch.n_best])
        assert [tokenizer.decode(reading.tokens).split() for reading in choices[row].readings] == words


def test_recordings_have_the_choices_they_have_alone(shipped, noisy):
    model, tokenizer = shipped
    states, lengths, references = noisy
    together = find_choices(model, tokenizer, states, lengths, references, 3)
    alone = [
        choice._replace(row=row)
        for row, length in enumerate(lengths.tolist())
        for choice in find_choices(
            model, tokenizer, states[row : row + 1, :length], lengths[row : row + 1], references[row : row + 1], 3
        )
    ]
    assert [c.readings for c in together] == [c.readings for c in alone]
    assert [c.errors for c in together] == [c.errors for c in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-3)


def test_the_gradient_is_that_of_the_scores(shipped, noisy):
    """Along a direction in the decoder's weights and in the states, in float64, beside differences: the texts' scores
    move with the decoder's share of what it says of them."""
    model, tokenizer = copy.deepcopy(shipped[0]).double(), shipped[1]
    states, lengths, references = noisy[0].double().requires_grad_(), *noisy[1:]
    choices = find_choices(model, tokenizer, states, lengths, references, 4)
    weight = model.decoder.blocks[0].cross.value.weight
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (weight, states)]

    def said():
        per_text = []
        for choice in choices:
            memory = model.decoder.read_memory(states[[choice.row]], lengths[[choice.row]])
            per_text.append(
                torch.cat(
                    [
                        decoder_log_probs(model.decoder, memory, [r.tokens], torch.tensor([r.places]))
                        for r in choice.readings
                    ]
                )
            )
        return per_text

    def expected(now, before):
        share = 1 - model.config.search.ctc_weight
        total = 0.0
        for choice, new, old in zip(choices, now, before, strict=True):
            shares = (torch.tensor(choice.scores, dtype=torch.float64) + share * (new - old)).softmax(0)
            total += float(shares @ torch.tensor(choice.errors, dtype=torch.float64))
        return total / sum(len(reference.split()) for reference in references)

    loss = minimum_wer_loss(model, states, lengths, choices, sum(len(reference.split()) for reference in references))
    loss.backward()
    slope = sum(float((x.grad * d).sum()) for x, d in zip((weight, states), directions, strict=True))
    values = []
    with torch.no_grad():
        before = said()
        assert loss.item() == pytest.approx(expected(before, before), abs=1e-4)  # the search is in float32
        step = 1e-5
        for sign in (1, -2):
            weight += sign * step * directions[0]
            states += sign * step * directions[1]
            values.append(expected(said(), before))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)
    assert abs(slope) > 1e-3
    assert all(p.grad is None for p in model.ctc_head.parameters())


def test_steps_along_it_make_fewer_errors(shipped, noisy):
    """As joint search finds texts anew after each step. The model's mode stays as it is."""
    model, tokenizer = copy.deepcopy(shipped[0]).train(), shipped[1]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.SGD(model.decoder.parameters(), lr=0.03)
    losses = []
    for _ in range(6):
        loss = loss_of(model, tokenizer, *noisy, 4)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
    assert model.training
    assert losses[-1] < 0.8 * losses[0], losses


def test_nothing_to_choose_costs_nothing(shipped, noisy):
    """Without recordings that matter the loss is 0 and has no gradient: all texts of a silence are as bad, or one."""
    model, tokenizer = shipped
    states, lengths = model.encode(torch.zeros(2, 16_000), torch.tensor([16_000, 8_000]))
    loss = loss_of(model, tokenizer, states, lengths, ["", ""], 4)
    assert loss.item() == 0 and not loss.requires_grad


def test_states_that_are_no_numbers_cost_nothing(shipped, noisy):
    """The step is skipped for the other losses, and its batch told; the search must not end the run."""
    model, tokenizer = shipped
    states, lengths, references = noisy
    broken = states.clone()
    broken[0, 0, 0] = torch.nan
    assert find_choices(model, tokenizer, broken, lengths, references, 4) == []


def test_chunks_limit_what_ctc_hears(shipped, noisy):
    """As in the loss of the transcripts."""
    model, tokenizer = shipped
    states, lengths, references = noisy
    whole, parts = (find_choices(model, tokenizer, states, lengths, references, 4, chunk) for chunk in (None, 12))
    assert [choice.scores for choice in whole] != [choice.scores for choice in parts]


def test_bfloat16_is_close(shipped, noisy):
    """Under autocast what is expected stays in float32, and its gradient goes the same way."""
    model, tokenizer = copy.deepcopy(shipped[0]), shipped[1]
    gradients, values = [], []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = loss_of(model, tokenizer, *noisy, 4)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.decoder.parameters() if p.grad is not None]))
        values.append(loss.item())
    assert values[1] == pytest.approx(values[0], abs=1e-5)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"minimum_wer_weight": -1.0}, "minimum_wer_weight"),
        ({"minimum_wer_texts": 1}, "minimum_wer_texts"),
        ({"minimum_wer_weight": 1.0}, "ctc_weight"),
    ],
)
def test_impossible_settings_are_named(changes, name):
    base = {"data": DataConfig(train="a.jsonl", dev=["b.jsonl"], tokenizer="c.model"), "model": ModelConfig()}
    if name == "ctc_weight":
        base["model"] = ModelConfig(search=SearchConfig(search="joint", ctc_weight=1.0))
    with pytest.raises(ValueError, match=name):
        TrainingConfig(**base, **changes)


def test_what_the_search_cuts_counts_nothing(shipped, noisy, monkeypatch):
    """Texts of stretches are no texts of the recording."""
    model, tokenizer = shipped
    states, lengths, references = noisy
    longest = 0.5 * (sorted(lengths.tolist())[1] + sorted(lengths.tolist())[2]) * model.seconds_per_state
    monkeypatch.setattr("samba_asr.decoding.search.LONGEST_SECONDS", longest)
    whole = {choice.row for choice in find_choices(model, tokenizer, states, lengths, references, 4)}
    assert whole and whole <= {
        row for row, length in enumerate(lengths.tolist()) if length * model.seconds_per_state <= longest
    }
