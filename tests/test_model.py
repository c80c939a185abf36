"""The recogniser: padding never changes a value or a gradient, batches equal single utterances, steps equal forward."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from model_fixture import CONFIG

from samba_asr.config import DecoderConfig, EncoderConfig, MixerConfig, ModelConfig, SearchConfig
from samba_asr.decoding.search import search_tokens
from samba_asr.model.asr import IGNORED, SambaASR, decoder_pairs
from samba_asr.model.feedforward import ResidualDrop
from samba_asr.text.tokenizer import BOS_ID, EOS_ID

KINDS = ("mamba", "mamba2", "s4d")
ENCODER_KINDS = (*KINDS, "hydra")
STEMS = ("conv4x", "whisper")
FRAMES = torch.tensor([83, 40, 1, 62])
TOKENS = torch.tensor([9, 4, 0, 1])


def build(kind: str = "mamba2", stem: str = "conv4x", d_ff: int = 32, **encoder) -> SambaASR:
    """A small float64 model without dropout, so that equality can be asked for; with hydra its decoder is mamba2."""
    mixer = MixerConfig(kind=kind, d_state=8, head_dim=16, chunk_size=8)
    causal = replace(mixer, kind="mamba2") if kind == "hydra" else mixer
    config = ModelConfig(
        vocab_size=20,
        d_model=32,
        features=CONFIG.features,
        encoder=EncoderConfig(
            n_layers=2, subsampling=stem, subsampling_channels=4, d_ff=d_ff, dropout=0.0, mixer=mixer, **encoder
        ),
        decoder=DecoderConfig(n_layers=2, d_ff=d_ff, dropout=0.0, mixer=causal),
    )
    return SambaASR(config).double()


def make_batch():
    features = torch.randn(4, 83, 80, dtype=torch.float64)
    tokens = torch.randint(4, 20, (4, 9))
    return features, FRAMES, tokens, TOKENS


def sum_losses(model, features, lengths, tokens, token_lengths):
    """Losses as sums, which add up over utterances as means over tokens do not."""
    losses = model.loss(features, lengths, tokens, token_lengths, label_smoothing=0.1)
    return losses.ctc * token_lengths.sum().clamp_min(1) + losses.decoder * (token_lengths + 1).sum()


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("kind", ENCODER_KINDS)
@pytest.mark.parametrize("rubbish", [1e3, float("nan")])
def test_batch_equals_alone_in_values_and_gradients(kind, stem, rubbish):
    model = build(kind, stem)
    features, lengths, tokens, token_lengths = make_batch()
    alone, encoded = 0.0, []
    for i, (frames, size) in enumerate(zip(lengths, token_lengths, strict=True)):
        one = (features[i : i + 1, :frames], frames[None], tokens[i : i + 1, :size], size[None])
        alone = alone + sum_losses(model, *one)
        encoded.append(model.encode_features(*one[:2])[0][0])
    expected = torch.autograd.grad(alone, list(model.parameters()))

    for i, (frames, size) in enumerate(zip(lengths, token_lengths, strict=True)):
        features[i, frames:], tokens[i, size:] = rubbish, 19
    features.requires_grad_()
    encoder_out, encoder_lengths = model.encode_features(features, lengths)
    together = sum_losses(model, features, lengths, tokens, token_lengths)
    *found, on_features = torch.autograd.grad(together, [*model.parameters(), features])

    for i, (one, states) in enumerate(zip(encoded, encoder_lengths, strict=True)):
        torch.testing.assert_close(encoder_out[i, :states], one, rtol=1e-9, atol=1e-10)
        assert not encoder_out[i, states:].any()
        assert not on_features[i, lengths[i] :].any()
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    for (name, _), a, b in zip(model.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("stem", STEMS)
def test_state_counts(stem):
    model = build(stem=stem)
    factor = {"conv4x": 4, "whisper": 2}[stem]
    lengths = torch.arange(1, 30)
    encoder_out, states = model.encode_features(torch.randn(29, 29, 80, dtype=torch.float64), lengths)
    assert torch.equal(states, -(-lengths // factor))
    assert encoder_out.shape[1] == int(states.max())
    assert model.seconds_per_state == pytest.approx(factor * 0.01)


def test_real_clips_batched_equal_alone(clips):
    from samba_asr.audio.load import load_audio

    model = SambaASR(CONFIG).eval()
    waveforms = [torch.from_numpy(load_audio(path)) for path, _ in clips[:4]]
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    encoder_out, lengths = model.encode(batch, torch.tensor([len(w) for w in waveforms]))
    for row, size, waveform in zip(encoder_out, lengths, waveforms, strict=True):
        alone, _ = model.encode(waveform[None], torch.tensor([len(waveform)]))
        torch.testing.assert_close(row[:size], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_steps_equal_forward(kind):
    model = build(kind)
    memory = torch.randn(3, 17, 32, dtype=torch.float64)
    memory_lengths = torch.tensor([17, 6, 0])
    tokens = torch.randint(0, 20, (3, 12))
    state = model.decoder.read_memory(memory, memory_lengths)
    logits, last = model.decoder(tokens, torch.full((3,), 12), state)
    for t in range(12):
        step_logits, state = model.decoder.step(tokens[:, t], state)
        torch.testing.assert_close(step_logits, logits[:, t], rtol=1e-9, atol=1e-10)
    for whole, stepped in zip(last.blocks, state.blocks, strict=True):
        torch.testing.assert_close(whole, stepped, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_cross_connection_reads_memory_then_text_as_one_sequence(kind):
    """The state after the memory, carried into the text, is the same as one scan over both joined."""
    block = build(kind).decoder.blocks[0]
    memory, text = torch.randn(1, 11, 32, dtype=torch.float64), torch.randn(1, 7, 32, dtype=torch.float64)
    joined, _ = block.cross(torch.cat([memory, text], 1), None)
    state = block.read_memory(memory, torch.tensor([11])).cross
    carried, _ = block.cross(text, None, state)
    torch.testing.assert_close(carried, joined[:, 11:], rtol=1e-9, atol=1e-10)


def test_decoder_hears_the_recording_and_no_later_token():
    model = build()
    memory, tokens = torch.randn(1, 9, 32, dtype=torch.float64), torch.randint(4, 20, (1, 6))
    lengths = torch.tensor([6])
    logits, _ = model.decoder(tokens, lengths, model.decoder.read_memory(memory, torch.tensor([9])))
    other, _ = model.decoder(tokens, lengths, model.decoder.read_memory(memory + 1, torch.tensor([9])))
    assert (logits - other).abs().min(-1).values.max() > 1e-6
    tokens[0, 4] = (tokens[0, 4] - 3) % 16 + 4
    later, _ = model.decoder(tokens, lengths, model.decoder.read_memory(memory, torch.tensor([9])))
    torch.testing.assert_close(later[:, :4], logits[:, :4])
    assert not torch.allclose(later[:, 4], logits[:, 4])


def test_state_reorder_picks_hypotheses():
    model = build()
    memory, lengths = torch.randn(3, 9, 32, dtype=torch.float64), torch.tensor([9, 4, 7])
    picks = torch.tensor([2, 0, 0, 1])
    state = model.decoder.read_memory(memory, lengths).reorder(picks)
    expected = model.decoder.read_memory(memory[picks], lengths[picks])
    tokens = torch.randint(4, 20, (4,))
    torch.testing.assert_close(model.decoder.step(tokens, state)[0], model.decoder.step(tokens, expected)[0])


def test_decoder_pairs():
    inputs, targets = decoder_pairs(torch.tensor([[7, 8, 9], [5, 99, 99]]), torch.tensor([3, 1]))
    assert inputs.tolist() == [[BOS_ID, 7, 8, 9], [BOS_ID, 5, EOS_ID, EOS_ID]]
    assert targets.tolist() == [[7, 8, 9, EOS_ID], [5, EOS_ID, IGNORED, IGNORED]]


def test_loss_is_the_weighted_sum_of_its_parts():
    model = build()
    features, lengths, tokens, token_lengths = make_batch()
    losses = model.loss(features, lengths, tokens, token_lengths, ctc_weight=0.3, label_smoothing=0.0)
    encoder_out, encoder_lengths = model.encode_features(features, lengths)
    log_probs = model.ctc_log_probs(encoder_out)
    ctc = sum(
        F.ctc_loss(log_probs[i : i + 1, :n].transpose(0, 1), tokens[i : i + 1, :t], (n,), (t,), reduction="sum")
        for i, (n, t) in enumerate(zip(encoder_lengths.tolist(), token_lengths.tolist(), strict=True))
        if t <= n
    )
    decoder = 0.0
    for i, size in enumerate(token_lengths.tolist()):
        text = [BOS_ID, *tokens[i, :size].tolist(), EOS_ID]
        state = model.decoder.read_memory(encoder_out[i : i + 1], encoder_lengths[i : i + 1])
        for read, said in itertools.pairwise(text):
            logits, state = model.decoder.step(torch.tensor([read]), state)
            decoder = decoder - logits.log_softmax(-1)[0, said]
    torch.testing.assert_close(losses.ctc, ctc / token_lengths.sum())
    torch.testing.assert_close(losses.decoder, decoder / (token_lengths + 1).sum())
    torch.testing.assert_close(losses.total, 0.3 * losses.ctc + 0.7 * losses.decoder)


def test_text_longer_than_ctc_can_place_stays_finite():
    model = build()
    losses = model.loss(torch.randn(1, 8, 80).double(), torch.tensor([8]), torch.full((1, 30), 5), torch.tensor([30]))
    losses.total.backward()
    assert losses.ctc == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_encoder_without_feed_forward():
    model = build(d_ff=0)
    assert all(block.ff is None for block in [*model.encoder.blocks, *model.decoder.blocks])
    assert model.encode_features(torch.randn(1, 20, 80).double(), torch.tensor([20]))[0].shape == (1, 5, 32)


def test_drop_path_drops_whole_branches_of_utterances():
    drop = ResidualDrop(0.0, drop_path=0.25)
    branch = torch.ones(4000, 2, 3)
    kept = drop(branch)
    per_utterance = kept.flatten(1)
    assert (per_utterance == per_utterance[:, :1]).all()
    assert per_utterance[:, 0].unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert kept.mean() == pytest.approx(1.0, abs=0.04)  # standard error 0.009
    assert torch.equal(drop.eval()(branch), branch)


def test_drop_path_grows_with_depth():
    model = build(drop_path=0.2)
    assert [block.drop.drop_path for block in model.encoder.blocks] == [0.0, 0.2]


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_no_attention_anywhere(kind, monkeypatch):
    """Nothing trains or decodes through torch's attention, and no state weighs all others by a softmax."""

    def refuse(*arguments, **options):
        raise AssertionError("attention was called")

    for name in ("scaled_dot_product_attention", "multi_head_attention_forward", "softmax"):
        monkeypatch.setattr(F, name, refuse)
    monkeypatch.setattr(torch, "softmax", refuse)
    monkeypatch.setattr(torch.Tensor, "softmax", refuse)
    model = build(kind)
    assert not [name for name, module in model.named_modules() if isinstance(module, torch.nn.MultiheadAttention)]
    features, lengths, tokens, token_lengths = make_batch()
    model.loss(features, lengths, tokens, token_lengths).total.backward()
    states = model.encode_features(features, lengths)
    for search in ("ctc", "autoregressive", "rescoring", "joint"):
        search_tokens(model, *states, SearchConfig(search))


def test_bfloat16_autocast_is_close_and_trains():
    model = SambaASR(replace(CONFIG, encoder=replace(CONFIG.encoder, dropout=0.0)))
    features, lengths, tokens, token_lengths = make_batch()
    full = model.loss(features.float(), lengths, tokens, token_lengths).total
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(features.float(), lengths, tokens, token_lengths).total
    half.backward()
    assert half.item() == pytest.approx(full.item(), rel=0.03)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
