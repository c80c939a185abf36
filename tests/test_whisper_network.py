"""The teacher's network against torch's own attention, and against faster-whisper's where a real teacher is at hand."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from whisper_cases import D_MODEL, N_LAYERS, N_MELS, N_STATES, N_TOKENS, VOCAB_SIZE, random_weights

from samba_asr.audio.features import LogMel
from samba_asr.audio.load import load_audio
from samba_asr.config import FeatureConfig
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.weights import read_whisper_weights


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(random_weights())


class Oracle:
    """Whisper in float64 with torch's MultiheadAttention."""

    def __init__(self):
        self.w = {name: value.double() for name, value in random_weights().items()}

    def linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def attention(self, name, x, memory, mask=None):
        attention = nn.MultiheadAttention(D_MODEL, D_MODEL // 64, batch_first=True).double()
        parts = [self.w[f"{name}.{part}.weight"] for part in ("query", "key", "value")]
        biases = [self.w[f"{name}.query.bias"], torch.zeros(D_MODEL), self.w[f"{name}.value.bias"]]
        attention.load_state_dict(
            {
                "in_proj_weight": torch.cat(parts),
                "in_proj_bias": torch.cat(biases),
                "out_proj.weight": self.w[f"{name}.out.weight"],
                "out_proj.bias": self.w[f"{name}.out.bias"],
            }
        )
        return attention(x, memory, memory, attn_mask=mask, need_weights=False)[0]

    def feed_forward(self, block, x):
        return x + self.linear(f"{block}.mlp.2", F.gelu(self.linear(f"{block}.mlp.0", self.norm(f"{block}.mlp_ln", x))))

    def encode(self, features):
        w, taps = self.w, []
        x = F.gelu(F.conv1d(features.double().mT, w["encoder.conv1.weight"], w["encoder.conv1.bias"], padding=1))
        x = F.gelu(F.conv1d(x, w["encoder.conv2.weight"], w["encoder.conv2.bias"], stride=2, padding=1)).mT
        x = x + w["encoder.positional_embedding"][: x.shape[1]]
        for block in (f"encoder.blocks.{i}" for i in range(N_LAYERS)):
            given = self.norm(f"{block}.attn_ln", x)
            taps.append((given, self.attention(f"{block}.attn", given, given)))
            x = self.feed_forward(block, x + taps[-1][1])
        return self.norm("encoder.ln_post", x), taps

    def decode(self, tokens, memory):
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = self.w["decoder.token_embedding.weight"][tokens] + self.w["decoder.positional_embedding"][:length]
        for block in (f"decoder.blocks.{i}" for i in range(N_LAYERS)):
            given = self.norm(f"{block}.attn_ln", x)
            x = x + self.attention(f"{block}.attn", given, given, mask)
            x = x + self.attention(f"{block}.cross_attn", self.norm(f"{block}.cross_attn_ln", x), memory)
            x = self.feed_forward(block, x)
        return self.norm("decoder.ln", x) @ self.w["decoder.token_embedding.weight"].T


def close(ours, theirs):
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [2 * N_STATES, 13, 1])
def test_encoder_and_its_taps(teacher, frames):
    features = torch.randn(3, frames, N_MELS)
    states, taps = teacher.encoder(features)
    expected, expected_taps = Oracle().encode(features)
    assert states.shape == (3, (frames + 1) // 2, D_MODEL) and len(taps) == N_LAYERS
    close(states, expected)
    for tap, (given, said) in zip(taps, expected_taps, strict=True):
        close(tap.given, given)
        close(tap.said, said)


def test_decoder(teacher):
    memory, tokens = torch.randn(3, 11, D_MODEL), torch.randint(VOCAB_SIZE, (3, N_TOKENS))
    logits, _ = teacher.decoder(tokens, teacher.decoder.read_memory(memory))
    close(logits, Oracle().decode(tokens, memory.double()))


@pytest.mark.parametrize("prompt", [1, 4])
def test_cached_decoding_is_uncached_decoding(teacher, prompt):
    memory, tokens = torch.randn(2, 7, D_MODEL), torch.randint(VOCAB_SIZE, (2, N_TOKENS))
    whole, _ = teacher.decoder(tokens, teacher.decoder.read_memory(memory))
    logits, state = teacher.decoder(tokens[:, :prompt], teacher.decoder.read_memory(memory))
    pieces = [logits]
    for t in range(prompt, N_TOKENS):
        logits, state = teacher.decoder(tokens[:, t : t + 1], state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)


def test_reordered_state_is_that_of_its_rows(teacher):
    memory, tokens = torch.randn(3, 7, D_MODEL), torch.randint(VOCAB_SIZE, (3, 5))
    _, state = teacher.decoder(tokens[:, :4], teacher.decoder.read_memory(memory))
    rows = torch.tensor([2, 0, 2])
    logits, _ = teacher.decoder(tokens[rows, 4:], state.reorder(rows))
    close(logits[:, 0], Oracle().decode(tokens[rows], memory[rows].double())[:, -1])


def test_a_teacher_is_frozen_and_knows_its_width(teacher):
    assert teacher.d_model == D_MODEL and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_too_much_at_once(teacher):
    with pytest.raises(ValueError, match=r"41 frames are more than the teacher hears at once \(40\)"):
        teacher.encoder(torch.zeros(1, 41, N_MELS))
    state = teacher.decoder.read_memory(torch.zeros(1, 3, D_MODEL))
    with pytest.raises(ValueError, match=r"33 tokens are more than .* \(32\)"):
        teacher.decoder(torch.zeros(1, 33, dtype=torch.long), state)
    _, state = teacher.decoder(torch.zeros(1, 32, dtype=torch.long), state)
    with pytest.raises(ValueError, match="33 tokens"):
        teacher.decoder(torch.zeros(1, 1, dtype=torch.long), state)
    with pytest.raises(ValueError, match="one token after the first call, not 2"):
        teacher.decoder(torch.zeros(1, 2, dtype=torch.long), state)


def test_weights_that_make_no_model():
    weights = random_weights()
    for name in ("encoder.conv1.weight", "decoder.token_embedding.weight", "encoder.blocks.0.attn.query.bias"):
        with pytest.raises(ValueError, match="not the weights of a whole Whisper model"):
            build_teacher({key: value for key, value in weights.items() if key != name})
    with pytest.raises(ValueError, match="size mismatch"):
        build_teacher({**weights, "encoder.conv2.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"width \(100\) must be a multiple of 64"):
        build_teacher({**weights, "encoder.conv1.weight": torch.zeros(100, N_MELS, 3)})


@pytest.mark.slow
def test_a_real_teacher_hears_what_faster_whisper_hears(quilter):
    """SAMBA_TEACHER names a checkpoint, SAMBA_TEACHER_CT2 the same for faster-whisper (default tiny.en)."""
    if "SAMBA_TEACHER" not in os.environ:
        pytest.skip("SAMBA_TEACHER names no teacher")
    faster_whisper = pytest.importorskip("faster_whisper")
    waveform = np.zeros(30 * 16000, np.float32)
    clip = load_audio(quilter)
    waveform[: len(clip)] = clip
    model = faster_whisper.WhisperModel(os.environ.get("SAMBA_TEACHER_CT2", "tiny.en"), compute_type="float32")
    theirs = np.array(model.encode(model.feature_extractor(waveform)[:, :3000]))
    logmel = LogMel(FeatureConfig(normalisation="whisper"))
    features, _ = logmel(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
    ours, _ = build_teacher(read_whisper_weights(os.environ["SAMBA_TEACHER"])).encoder(features)
    assert np.linalg.norm(ours.numpy() - theirs) < 1e-3 * np.linalg.norm(theirs)
