"""A recogniser whose decoder listens by windows and whose CTC has blocks and pieces of its own."""

import copy
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_fixture import CONFIG
from safetensors.torch import load_file

from samba_asr.config import CONFIG_VERSION, CTCConfig, DecoderConfig, SearchConfig
from samba_asr.decoding.prefix_beam import ctc_prefix_beam
from samba_asr.decoding.prefix_scores import PrefixScores, softened
from samba_asr.decoding.search import search_tokens
from samba_asr.decoding.spelling import spelling_of
from samba_asr.decoding.timing import Timing
from samba_asr.model.alignment import align, listening_places
from samba_asr.model.asr import PLACE_JITTER, SambaASR, decoder_pairs, exchanged
from samba_asr.model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from samba_asr.ssm.mixer import Move
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID, Tokenizer
from samba_asr.training.config import DataConfig, SpecAugmentConfig, TrainingConfig
from samba_asr.training.data import Example, collate
from samba_asr.training.module import TrainingModule

SPELLINGS = {10: (4, 5), 11: (4, 5, 6), 12: (5, 5), 13: (6, 4), 14: (7, 8), 15: (9, 9, 9), 16: (8, 4)}
FRAMES = torch.tensor([83, 40, 1, 62, 20])
TOKENS = torch.tensor([4, 3, 0, 1, 6])  # the last one has more pieces than states


def randomise(model):
    """New windows take the mean of what they hear: let them choose."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cross.kernel" in name or "cross.salience" in name:
                parameter.normal_(std=0.3)
    return model


def build(listening="window", kind="mamba2", tied=True, ctc_layers=1, dropout=0.0):
    """A small float64 model with a vocabulary of 17, of which CTC has the first 10."""
    mixer = replace(CONFIG.decoder.mixer, kind=kind, chunk_size=8)
    config = replace(
        CONFIG,
        vocab_size=17,
        encoder=replace(CONFIG.encoder, dropout=dropout),
        decoder=DecoderConfig(2, 32, dropout, mixer, listening, window_before=3, window_after=5, tied_embedding=tied),
        ctc=CTCConfig(ctc_layers, vocab_size=10, longest_spelling=3),
    )
    model = randomise(SambaASR(config)).double()
    for token, pieces in SPELLINGS.items():
        model.spellings[token, : len(pieces)] = torch.tensor(pieces)
    return model


def make_batch():
    return torch.randn(5, 83, 80, dtype=torch.float64), FRAMES, torch.randint(4, 17, (5, 6)), TOKENS


def spelt(tokens):
    return [piece for token in tokens.tolist() for piece in SPELLINGS.get(token, (token,))]


def sum_losses(model, features, lengths, tokens, token_lengths):
    """Losses as sums, which add up over utterances as means do not."""
    losses = model.loss(features, lengths, tokens, token_lengths)
    pieces = sum(len(spelt(row[:n])) for row, n in zip(tokens, token_lengths, strict=True))
    return losses.ctc * max(pieces, 1) + losses.decoder * (token_lengths + 1).sum()


@pytest.mark.parametrize(("listening", "kind"), [("window", "mamba"), ("window", "mamba2"), ("state", "mamba2")])
def test_batch_equals_alone_in_values_and_gradients(listening, kind):
    model = build(listening, kind).eval()
    features, lengths, tokens, token_lengths = make_batch()
    tokens[4] = 15
    alone = sum(
        sum_losses(model, features[i : i + 1, :frames], frames[None], tokens[i : i + 1, :size], size[None])
        for i, (frames, size) in enumerate(zip(lengths, token_lengths, strict=True))
    )
    expected = torch.autograd.grad(alone, list(model.parameters()))
    for i, (frames, size) in enumerate(zip(lengths, token_lengths, strict=True)):
        features[i, frames:], tokens[i, size:] = 1e3, 16
    together = sum_losses(model, features, lengths, tokens, token_lengths)
    found = torch.autograd.grad(together, list(model.parameters()))
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    for (name, _), one, other in zip(model.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ctc_layers", [0, 1])
def test_every_parameter_learns(tied, ctc_layers):
    model = build(tied=tied, ctc_layers=ctc_layers, dropout=0.2).train()
    model.loss(*make_batch()).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # a salience's bias raises all states alike, and so changes nothing
        assert parameter.grad.any() or name.endswith("salience.bias"), name
    assert (model.decoder.out_proj.weight is model.decoder.embedding.weight) == tied


def test_ctcs_loss_is_that_of_the_pieces_and_the_decoders_that_at_their_places():
    model = build().eval()
    features, lengths, tokens, token_lengths = make_batch()
    losses = model.loss(features, lengths, tokens, token_lengths, label_smoothing=0.0)
    states, state_lengths = model.encode_features(features, lengths)
    log_probs = model.ctc_log_probs(states, state_lengths).detach()
    ctc = decoder = pieces = 0.0
    for i, size in enumerate(token_lengths):
        text, said = tokens[i, :size], spelt(tokens[i, :size])
        n = int(state_lengths[i])
        nll = torch.nn.functional.ctc_loss(
            log_probs[i, :n, None], torch.tensor([said]).long(), (n,), (len(said),), reduction="sum", zero_infinity=True
        )
        ctc, pieces = ctc + nll, pieces + len(said)
        (firsts,) = align(log_probs[i : i + 1, :n].numpy(), [n], [said])
        places = listening_places(firsts, [len(SPELLINGS.get(token, "1")) for token in text.tolist()], n)
        state = model.decoder.read_memory(states[i : i + 1, :n], torch.tensor([n]))
        for read, target, place in zip([BOS_ID, *text], [*text, EOS_ID], places, strict=True):
            logits, state = model.decoder.step(torch.tensor([read]), state, places=torch.tensor([place]))
            decoder = decoder - logits.log_softmax(-1)[0, target]
    torch.testing.assert_close(losses.ctc, ctc / pieces)
    torch.testing.assert_close(losses.decoder, decoder / (token_lengths + 1).sum())
    torch.testing.assert_close(losses.total, 0.3 * losses.ctc + 0.7 * losses.decoder)


def test_places_are_shifted_in_training_alone():
    model, lengths = build().eval(), torch.tensor([60, 30])
    counts = [[1] * 12, [2, 1]]
    exact = model._places([None, None], counts, lengths)
    assert exact[0].tolist() == listening_places(None, counts[0], 60)
    assert exact[1, :3].tolist() == listening_places(None, counts[1], 30)
    model.train()
    shifts = torch.stack([model._places([None, None], counts, lengths) - exact for _ in range(50)])
    assert set(shifts.unique().tolist()) == set(range(-PLACE_JITTER, PLACE_JITTER + 1))


def test_spelling_of_texts():
    model = build()
    tokens = torch.tensor([[11, 4, 14, 12], [10, 10, 0, 0], [0, 0, 0, 0]])
    pieces, counts = model.spell(tokens, torch.tensor([4, 2, 0]))
    assert pieces == [[4, 5, 6, 4, 7, 8, 5, 5], [4, 5, 4, 5], []]
    assert counts == [[3, 1, 2, 2], [2, 2], []]
    plain = SambaASR(replace(CONFIG, vocab_size=17))
    assert plain.spell(tokens, torch.tensor([4, 2, 0])) == (
        [[11, 4, 14, 12], [10, 10], []],
        [[1, 1, 1, 1], [1, 1], []],
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mamba", "mamba2", "s4d"])
def test_steps_in_a_pool_equal_forward(kind):
    """Texts of three recordings, in a pool whose places are handed on in disorder."""
    model = build(kind=kind).eval()
    memory, lengths = torch.randn(3, 25, 32, dtype=torch.float64), torch.tensor([25, 0, 11])
    start = model.decoder.read_memory(memory, lengths)
    pool = start.reorder(torch.tensor([2, 0, 1, 0, 1, 2]))
    texts = {place: [recording] for place, recording in enumerate([2, 0, 1, 0, 1, 2])}  # and what was read, and where
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        order = torch.randperm(6, generator=generator)
        sources, targets = order[:3], order[[0, 3, 4]]
        tokens = torch.randint(4, 17, (3,), generator=generator)
        places = torch.randint(-2, 28, (3,), generator=generator)
        logits, pool = model.decoder.step(tokens, pool, Move(sources, targets), places)
        read = [texts[s] + [(t, p)] for s, t, p in zip(*(v.tolist() for v in (sources, tokens, places)), strict=True)]
        for target, text, said in zip(targets.tolist(), read, logits, strict=True):
            texts[target] = text
            steps = torch.tensor(text[1:])
            alone = start.reorder(torch.tensor(text[:1]))
            expected, _ = model.decoder(steps[None, :, 0], torch.tensor([len(steps)]), alone, steps[None, :, 1])
            torch.testing.assert_close(said, expected[0, -1], rtol=1e-9, atol=1e-9)


def test_a_window_needs_places():
    decoder = build().eval().decoder
    state = decoder.read_memory(torch.randn(1, 9, 32).double(), torch.tensor([9]))
    with pytest.raises(ValueError, match="needs places: where each next token is expected"):
        decoder.step(torch.tensor([BOS_ID]), state)
    with pytest.raises(ValueError, match="needs places"):
        decoder(torch.tensor([[BOS_ID]]), torch.tensor([1]), state)


@torch.no_grad()
def test_rescoring_reads_each_text_where_ctc_aligns_it():
    """Against one token after the other; every text of the n-best list can win, as the weights are."""
    torch.manual_seed(3)
    model = build().eval()
    model.ctc_head.weight *= 4
    states, lengths = torch.randn(2, 12, 32, dtype=torch.float64), torch.tensor([12, 7])
    log_probs, spelling = model.ctc_log_probs(states, lengths).numpy(), spelling_of(model.spellings, 10)
    winners = set()
    for weight, bonus in itertools.product([0.0, 0.3, 0.7, 1.0], [-1.0, 0.0, 2.0]):
        config = SearchConfig("rescoring", beam_size=6, ctc_weight=weight, length_bonus=bonus)
        found = search_tokens(model, states, lengths, config)
        for row, length in enumerate(lengths.tolist()):
            said = log_probs[row, :length]
            n_best = ctc_prefix_beam(said, 6)
            totals = []
            for text, ctc in ((list(each.tokens), each.log_prob) for each in n_best):
                tokens = spelling.tokens(text)
                counts = [len(SPELLINGS.get(token, (token,))) for token in tokens]
                assert [p for token in tokens for p in SPELLINGS.get(token, (token,))] == text
                (firsts,) = align(said[None], [length], [text])
                state = model.decoder.read_memory(states[row : row + 1, :length], lengths[row : row + 1])
                decoder = 0.0
                places = listening_places(firsts, counts, length)
                for read, target, place in zip([BOS_ID, *tokens], [*tokens, EOS_ID], places, strict=True):
                    logits, state = model.decoder.step(torch.tensor([read]), state, places=torch.tensor([place]))
                    decoder += float(logits[0].log_softmax(-1)[target])
                totals.append(weight * ctc + (1 - weight) * decoder + bonus * len(text))
            best = totals.index(max(totals))
            winners.add((row, best))
            assert found[row] == list(n_best[best].tokens)
    assert len(winners) > 4


@torch.no_grad()
@pytest.mark.parametrize("ctc_layers", [0, 1])
def test_the_decoder_alone_says_its_best_token_where_ctc_hears_the_next_one(ctc_layers):
    """Against the whole text at once, with the places where CTC says each piece first."""
    torch.manual_seed(8)
    model = build(ctc_layers=ctc_layers).eval()
    model.ctc_head.weight *= 6
    states, lengths = torch.randn(3, 40, 32, dtype=torch.float64), torch.tensor([40, 0, 25])
    config = SearchConfig("autoregressive", max_tokens_per_second=4.0)
    found = search_tokens(model, states, lengths, config)
    assert found[1] == [] and found[0] and all(token not in (0, 2, 3) for row in found for token in row)
    for row in (0, 2):
        one, length = states[row : row + 1, : lengths[row]], lengths[row : row + 1]
        assert search_tokens(model, one, length, config) == [found[row]]
        log_probs = model.ctc_log_probs(one, length)[0].numpy()
        timing, scores = Timing(log_probs), PrefixScores(softened(log_probs, config.spelling_weight))
        places, reached, text, pieces = [timing.begin()], scores.begin(), [], [BLANK_ID]
        memory = model.decoder.read_memory(one, length)
        most = math.ceil(float(length) * model.seconds_per_state * 4)
        while len(text) < most:
            inputs = torch.tensor([[BOS_ID, *text]])
            logits, _ = model.decoder(inputs, torch.tensor([inputs.shape[1]]), memory, torch.tensor([places]))
            logits[:, :, [0, 2]] = -torch.inf
            token = int(logits[0, -1].argmax())
            if token == EOS_ID:
                break
            text.append(token)
            for piece in SPELLINGS.get(token, (token,)):
                said, reached = scores.lengthen(reached, np.array(pieces[-1:]), np.array([piece]))
                pieces.append(piece)
            places.append(timing.following(int(said.argmax()), pieces[-1]))
        assert pieces[1:] == found[row]


@torch.no_grad()
@pytest.mark.parametrize("listening", ["state", "window"])
@pytest.mark.parametrize("search", ["ctc", "joint"])
def test_a_batch_is_searched_as_if_alone(listening, search):
    model = build(listening).eval()
    model.ctc_head.weight *= 4
    model.decoder.embedding.weight *= 2
    states, lengths = 2 * torch.randn(4, 20, 32, dtype=torch.float64), torch.tensor([20, 7, 0, 13])
    config = SearchConfig(search, beam_size=4, ctc_weight=0.3, length_bonus=1.0)
    together = search_tokens(model, states, lengths, config)
    alone = [search_tokens(model, states[i : i + 1, :n], n[None], config)[0] for i, n in enumerate(lengths)]
    assert together == alone and together[2] == [] and len(together[0]) > 3
    assert all(piece < 10 for text in together for piece in text)  # CTC's pieces, not the decoder's tokens


@torch.no_grad()
@pytest.mark.parametrize("listening", ["state", "window"])
def test_tokens_that_are_pieces_each_are_searched_as_without_spellings(listening):
    with_spellings = replace(build(listening).config, ctc=CTCConfig(1, vocab_size=17, longest_spelling=2))
    spelling = randomise(SambaASR(with_spellings)).double().eval()
    spelling.ctc_head.weight *= 4
    plain = SambaASR(replace(with_spellings, ctc=CTCConfig(1))).double().eval()
    weights = spelling.state_dict()
    assert weights.pop("spellings").tolist() == [[token, -1] for token in range(17)]
    plain.load_state_dict(weights)
    states, lengths = 2 * torch.randn(3, 20, 32, dtype=torch.float64), torch.tensor([20, 7, 13])
    config = SearchConfig("joint", beam_size=4, ctc_weight=0.3, length_bonus=1.0)
    found = search_tokens(spelling, states, lengths, config)
    assert found == search_tokens(plain, states, lengths, config) and len(found[0]) > 3
    batch = make_batch()
    assert spelling.loss(*batch) == plain.loss(*batch)


@pytest.mark.parametrize("listening", ["state", "window"])
def test_text_without_a_recording(listening):
    model = build(listening).eval()
    _, _, tokens, token_lengths = make_batch()
    found = model.text_loss(tokens, token_lengths, label_smoothing=0.0)
    total = 0.0
    for row, size in zip(tokens, token_lengths, strict=True):
        nothing = torch.zeros(1, 0, 32, dtype=torch.float64)
        state = model.decoder.read_memory(nothing, torch.tensor([0]))
        for read, target in zip([BOS_ID, *row[:size]], [*row[:size], EOS_ID], strict=True):
            logits, state = model.decoder.step(torch.tensor([read]), state, places=torch.tensor([0]))
            total = total - logits.log_softmax(-1)[0, target]
    torch.testing.assert_close(found, total / (token_lengths + 1).sum())
    found.backward()
    touched = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert touched and all(name.startswith("decoder.") for name in touched)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.fixture
def windowed(tiny_checkpoint):
    """A model of the tiny checkpoint's vocabulary, and its tokenizer."""
    _, tokenizer = load_checkpoint(tiny_checkpoint)
    config = replace(
        CONFIG,
        vocab_size=tokenizer.vocab_size,
        decoder=replace(CONFIG.decoder, listening="window", tied_embedding=True),
        ctc=CTCConfig(1, vocab_size=24, longest_spelling=3),
    )
    model = randomise(SambaASR(config)).eval()
    model.spellings[24:] = torch.randint(4, 24, model.spellings[24:].shape, dtype=torch.int16)
    model.spellings[30:, 2] = -1
    return model, tokenizer


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_save_and_load(windowed, tmp_path, dtype):
    model, tokenizer = windowed
    save_checkpoint(tmp_path / "model", model, tokenizer, "", dtype)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert stored.keys() == model.state_dict().keys() - {"decoder.out_proj.weight"}
    assert torch.equal(stored["spellings"], model.spellings) and stored["spellings"].dtype == torch.int16
    assert stored["decoder.embedding.weight"].dtype == (dtype or torch.float32)
    again, _ = load_checkpoint(tmp_path / "model")
    assert again.config == model.config
    assert again.decoder.out_proj.weight is again.decoder.embedding.weight
    assert torch.equal(again.spellings, model.spellings) and again.spellings.dtype == torch.int16
    for name, tensor in model.state_dict().items():
        exact = dtype is None or torch.equal(again.state_dict()[name], tensor)
        torch.testing.assert_close(
            again.state_dict()[name], tensor, rtol=0 if exact else 1e-2, atol=0 if exact else 1e-3
        )
    save_checkpoint(tmp_path / "again", again, tokenizer, "", dtype)
    for name, tensor in load_file(tmp_path / "again" / "model.safetensors").items():
        assert torch.equal(tensor, stored[name]), name


def test_a_file_without_the_shared_weights(windowed, tmp_path):
    from safetensors.torch import save_file

    model, tokenizer = windowed
    save_checkpoint(tmp_path / "model", model, tokenizer, "")
    path = tmp_path / "model" / "model.safetensors"
    stored = load_file(path)
    del stored["decoder.embedding.weight"]
    save_file(stored, path)
    with pytest.raises(CheckpointError, match=r"lacks decoder.embedding.weight"):
        load_checkpoint(tmp_path / "model")


def test_version_5_had_none_of_this(tiny_checkpoint, tmp_path):
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    folder = tmp_path / "model"
    save_checkpoint(folder, model, tokenizer, "")
    config = json.loads((folder / "config.json").read_text())
    assert config["version"] == CONFIG_VERSION == 10
    of_version_5 = copy.deepcopy(config)
    del of_version_5["model"]["ctc"]
    for name in ("listening", "window_before", "window_after", "tied_embedding"):
        del of_version_5["model"]["decoder"][name]
    of_version_5["model"]["search"].pop("spelling_weight", None)
    (folder / "config.json").write_text(json.dumps(of_version_5 | {"version": 5}))
    again, _ = load_checkpoint(folder)
    assert again.config == model.config
    assert again.spellings is None and again.decoder.listening == "state"
    features = torch.randn(1, 60, 80), torch.tensor([60])
    assert torch.equal(again.encode_features(*features)[0], model.encode_features(*features)[0])
    (folder / "config.json").write_text(json.dumps(of_version_5))
    with pytest.raises(CheckpointError, match="model lacks ctc"):
        load_checkpoint(folder)
    (folder / "config.json").write_text(
        json.dumps(of_version_5 | {"model": of_version_5["model"] | {"ctc": config["model"]["ctc"]}})
    )
    with pytest.raises(CheckpointError, match=r"model.decoder lacks listening, window_before, window_after"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("decoder", {"listening": "attention"}, r"listening \('attention'\) must be one of 'state', 'window'"),
        ("decoder", {"window_before": -1}, r"window_before \(-1\) must not be negative"),
        ("decoder", {"window_after": 0}, r"window_after \(0\) must be positive"),
        ("decoder", {"listening": "window", "mixer": replace(CONFIG.decoder.mixer, head_dim=24)}, r"head_dim \(24\)"),
        ("ctc", {"vocab_size": 41}, r"ctc.vocab_size \(41\) must not exceed vocab_size \(40\)"),
        ("ctc", {"vocab_size": -1}, r"vocab_size \(-1\) must not be negative"),
        ("ctc", {"n_layers": -1}, r"n_layers \(-1\) must not be negative"),
        ("ctc", {"longest_spelling": 0}, r"longest_spelling \(0\) must be positive"),
    ],
)
def test_settings_that_make_no_sense(part, changes, says):
    with pytest.raises(ValueError, match=says):
        replace(CONFIG, **{part: replace(getattr(CONFIG, part), **changes)})


def test_a_share_of_the_inputs_is_exchanged():
    torch.manual_seed(3)
    lengths = torch.tensor([400, 250, 0])
    texts = torch.stack([torch.randint(100, 200, (400,)), torch.randint(200, 300, (400,)), torch.full((400,), 999)])
    inputs, _ = decoder_pairs(texts, lengths)
    drawn = exchanged(inputs, lengths + 1, 0.25)
    assert torch.equal(drawn[:, 0], inputs[:, 0])
    assert set(drawn.unique().tolist()) <= set(inputs[0].tolist()) | set(inputs[1, :251].tolist()) | {EOS_ID}
    own = torch.arange(401) <= lengths[:, None]
    assert not (drawn == EOS_ID)[own].any()  # no padding is drawn
    assert (drawn != inputs)[own].float().mean().item() == pytest.approx(0.25, abs=0.04)
    changed = drawn[0, 1:][drawn[0, 1:] != inputs[0, 1:]]
    assert ((changed >= 200) & (changed < 300)).any() and ((changed >= 100) & (changed < 200)).any()
    assert torch.equal(exchanged(inputs, lengths + 1, 0.0), inputs)


def test_noise_among_the_tokens_is_for_training_alone():
    model = build().eval()
    features, lengths, tokens, token_lengths = make_batch()
    states = model.encode_features(features, lengths)

    def losses(noise):
        torch.manual_seed(0)
        return model.loss_from_states(*states, tokens, token_lengths, token_noise=noise)

    assert losses(0.9) == losses(0.0)
    model.train()
    assert losses(0.9).ctc == losses(0.0).ctc
    assert losses(0.9).decoder != losses(0.0).decoder


def test_a_share_of_the_tokens_is_spelt():
    model = build()
    torch.manual_seed(2)
    texts = torch.randint(4, 17, (40, 30))
    lengths = torch.randint(0, 31, (40,))
    tokens, token_lengths = model.respell(texts, lengths, 0.3)
    assert model.spell(tokens, token_lengths)[0] == model.spell(texts, lengths)[0]  # CTC has to say the same
    long = sum(int(token) in SPELLINGS for row, n in zip(texts, lengths, strict=True) for token in row[:n])
    left = sum(int(token) in SPELLINGS for row, n in zip(tokens, token_lengths, strict=True) for token in row[:n])
    assert left / long == pytest.approx(0.7, abs=0.08)
    assert all(not row[n:].any() for row, n in zip(tokens, token_lengths, strict=True))
    same, same_lengths = model.respell(texts, lengths, 0.0)
    assert torch.equal(same_lengths, lengths)
    assert all(torch.equal(a[:n], b[:n]) for a, b, n in zip(same, texts, lengths, strict=True))
    plain = SambaASR(CONFIG)  # whose tokens are CTC's pieces
    same, same_lengths = plain.respell(texts, lengths, 0.9)
    assert torch.equal(same_lengths, lengths)
    assert all(torch.equal(a[:n], b[:n]) for a, b, n in zip(same, texts, lengths, strict=True))


@pytest.mark.parametrize("setting", ["token_noise", "spelt_share"])
def test_training_gives_the_decoder_noise_and_spellings(setting):
    tokenizer = Tokenizer.train(["a few words are enough for this"], 22)
    data = DataConfig(train="a", dev="b", tokenizer="c")
    examples = [Example(i, 0.1 * torch.randn(16_000), [11, 12, 4, 13, 16, 15]) for i in range(3)]

    def losses(share):
        torch.manual_seed(0)
        config = TrainingConfig(data=data, spec_augment=SpecAugmentConfig(0, 0.0, 0), **{setting: share})
        module = TrainingModule(config, build().float().train(), tokenizer, [])
        return module.losses(collate(examples)).recordings

    plain, changed = losses(0.0), losses(0.9)
    torch.testing.assert_close(changed.ctc, plain.ctc)
    assert abs(changed.decoder - plain.decoder) > 1e-3
