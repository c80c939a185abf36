"""The student: what it copies from its teacher, the error it is trained by, and its stem of 40 ms a state."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from distil_cases import D_MODEL, N_LAYERS, N_MELS, N_STATES, close, teacher_weights
from torch import nn

from samba_asr.config import EncoderConfig, MixerConfig
from samba_asr.model.encoder import Encoder
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.student import copy_teacher, relative_error, student_config

KINDS = ["whisper", "whisper4x", "whisper8x"]
STRIDE = {"whisper": 1, "whisper4x": 2, "whisper8x": 4}
MIXER = MixerConfig(expand=1, d_state=8)


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(teacher_weights())


def student(teacher, subsampling):
    encoder = Encoder(student_config(teacher, MIXER, subsampling))
    copy_teacher(encoder, teacher)
    return encoder


class Attends(nn.Module):
    """The teacher's attention in a mixer's place."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, lengths, chunk):
        return self.attention(x, self.attention.read(x)), None


def test_the_student_has_the_teacher_s_sizes(teacher):
    config = student_config(teacher, MIXER, "whisper4x")
    encoder = config.encoder
    assert (config.d_model, config.features.n_mels) == (D_MODEL, N_MELS)
    assert (encoder.n_layers, encoder.d_ff, encoder.dropout, encoder.drop_path) == (N_LAYERS, 4 * D_MODEL, 0.0, 0.0)
    assert encoder.subsampling == "whisper4x" and encoder.mixer == MIXER and not encoder.shared_projections
    assert student_config(teacher, MIXER, "whisper4x", shared_projections=True).encoder.shared_projections
    assert config.features.normalisation == "causal"


@torch.no_grad()
def test_with_the_teacher_s_attention_the_student_is_the_teacher(teacher):
    encoder = student(teacher, "whisper")
    for block, taught in zip(encoder.blocks, teacher.encoder.blocks, strict=True):
        block.mixer = Attends(taught.attn)
    features = torch.randn(2, 2 * N_STATES, N_MELS)
    lengths = torch.full((2,), 2 * N_STATES)
    states, state_lengths = encoder(features, lengths, offset=teacher.encoder.positional_embedding)
    assert state_lengths.tolist() == [N_STATES] * 2
    close(states, teacher.encoder(features)[0])


@pytest.mark.parametrize("subsampling", KINDS)
@torch.no_grad()
def test_without_mixers_the_student_is_stem_and_feed_forward(teacher, subsampling):
    """Against float64 arithmetic on the checkpoint's own names."""
    w = {name: value.double() for name, value in teacher_weights().items()}
    features = torch.randn(2, 90, N_MELS)

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    x = F.gelu(F.conv1d(features.double().mT, w["encoder.conv1.weight"], w["encoder.conv1.bias"], padding=1))
    x = F.gelu(F.conv1d(x, w["encoder.conv2.weight"], w["encoder.conv2.bias"], stride=2, padding=1)).mT
    x = x[:, :: STRIDE[subsampling]]
    given = []
    for block in (f"encoder.blocks.{i}" for i in range(N_LAYERS)):
        given.append(norm(f"{block}.attn_ln", x))
        wide = F.gelu(norm(f"{block}.mlp_ln", x) @ w[f"{block}.mlp.0.weight"].T + w[f"{block}.mlp.0.bias"])
        x = x + wide @ w[f"{block}.mlp.2.weight"].T + w[f"{block}.mlp.2.bias"]

    encoder = student(teacher, subsampling)
    heard = []
    for block in encoder.blocks:
        block.norm.register_forward_hook(lambda module, args, out: heard.append(out))
        for parameter in block.mixer.parameters():
            parameter.zero_()
    states, _ = encoder(features, torch.tensor([90, 90]))
    close(states, norm("encoder.ln_post", x))
    for ours, theirs in zip(heard, given, strict=True):
        close(ours, theirs)


def test_the_teacher_is_copied_not_shared(teacher):
    encoder = student(teacher, "whisper")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    for name, value in teacher_weights().items():
        assert torch.equal(teacher.state_dict()[name], value)


def test_other_sizes_cannot_be_copied(teacher):
    config = student_config(teacher, MIXER, "whisper")
    deeper = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, n_layers=N_LAYERS + 1))
    with pytest.raises(ValueError):
        copy_teacher(Encoder(deeper), teacher)


def plain_error(said, target, lengths):
    """relative_error, one number after the other, in float64."""
    rows = [(i, t) for i, length in enumerate(lengths) for t in range(length)]
    squares, variances = [], []
    for channel in range(target.shape[2]):
        values = [float(target[i, t, channel]) for i, t in rows]
        mean = sum(values) / len(values)
        variances.append(sum((value - mean) ** 2 for value in values))
        squares.append(sum((float(said[i, t, channel]) - float(target[i, t, channel])) ** 2 for i, t in rows))
    each = sum(square / variance for square, variance in zip(squares, variances, strict=True)) / len(squares)
    return (sum(squares) / sum(variances) + each) / 2


@pytest.fixture
def case():
    """States of channels that differ in mean and spread, with what a poor student says; padding is garbage."""
    spread = torch.tensor([0.3, 1.0, 1.0, 2.0, 20.0])
    target = torch.randn(3, 40, 5) * spread + torch.tensor([0.0, 5.0, -1.0, 0.0, 9.0])
    said = target + 0.5 * torch.randn(3, 40, 5) * torch.tensor([1.0, 1.0, 0.2, 3.0, 4.0])
    return said, target, torch.tensor([40, 7, 23])


def test_error_is_what_a_plain_loop_finds(case):
    said, target, lengths = case
    error = relative_error(said, target, lengths)
    assert error.shape == () and float(error) == pytest.approx(plain_error(said, target, lengths.tolist()), rel=1e-5)
    assert float(relative_error(said.bfloat16(), target, lengths)) == pytest.approx(float(error), rel=0.01)


def test_error_of_a_copy_and_of_the_mean(case):
    _, target, lengths = case
    assert float(relative_error(target, target, lengths)) == 0
    own = torch.arange(40) < lengths[:, None]
    mean = target[own].mean(0).expand_as(target)
    assert float(relative_error(mean, target, lengths)) == pytest.approx(1, abs=1e-5)
    halfway = (target + mean) / 2
    assert float(relative_error(halfway, target, lengths)) == pytest.approx(0.25, abs=1e-5)


def test_small_channels_count_as_much_as_large_ones(case):
    _, target, lengths = case
    own = torch.arange(40) < lengths[:, None]
    said = target.clone()
    said[:, :, 0] = target[own][:, 0].mean()
    assert float(relative_error(said, target, lengths)) == pytest.approx(0.5 / 5, abs=1e-3)


def test_error_ignores_padding(case):
    said, target, lengths = case
    padding = torch.arange(40) >= lengths[:, None]
    error = relative_error(said, target, lengths)
    louder = [x.masked_fill(padding[:, :, None], 1e3) for x in (said, target)]
    assert float(relative_error(*louder, lengths)) == pytest.approx(float(error), rel=1e-6)
    said.requires_grad_(True)
    relative_error(said, target, lengths).backward()
    assert not said.grad[padding].any() and said.grad[~padding].all()


def test_channels_that_never_change():
    target = torch.randn(2, 50, 8)
    target[:, :, 3] = 2.0
    said = target.clone()
    said[:, :, 3] += 0.001
    assert float(relative_error(said, target, torch.tensor([50, 50]))) < 0.01
    silent = torch.zeros(1, 4, 8)
    assert torch.isfinite(relative_error(silent, silent, torch.tensor([4])))


LENGTHS = torch.tensor([97, 1, 2, 3, 4, 5, 60])


@torch.no_grad()
def test_fewer_states_start_as_every_second_and_every_fourth(teacher):
    features = torch.randn(len(LENGTHS), 97, N_MELS)
    two, two_lengths = student(teacher, "whisper").subsampling(features, LENGTHS)
    four, four_lengths = student(teacher, "whisper4x").subsampling(features, LENGTHS)
    assert two_lengths.tolist() == [49, 1, 1, 2, 2, 3, 30]
    assert four_lengths.tolist() == [25, 1, 1, 1, 1, 2, 15]
    assert four.shape == (len(LENGTHS), 25, D_MODEL)
    for row, length in enumerate(four_lengths.tolist()):
        close(four[row, :length], two[row, ::2][:length], 1e-6)
    eight, eight_lengths = student(teacher, "whisper8x").subsampling(features, LENGTHS)
    assert eight_lengths.tolist() == [13, 1, 1, 1, 1, 1, 8]
    for row, length in enumerate(eight_lengths.tolist()):
        close(eight[row, :length], two[row, ::4][:length], 1e-6)


@pytest.mark.parametrize("subsampling", KINDS)
@torch.no_grad()
def test_a_padded_stem_hears_what_it_hears_alone(teacher, subsampling):
    stem = student(teacher, subsampling).subsampling
    for join in filter(None, (stem.join, stem.join_again)):
        nn.init.normal_(join.weight, std=0.1)
        nn.init.normal_(join.bias)
    features = torch.randn(len(LENGTHS), 97, N_MELS)
    together, lengths = stem(features, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone, own = stem(features[row : row + 1, :length], torch.tensor([length]))
        assert own.item() == lengths[row].item() == alone.shape[1]
        close(together[row, : own.item()], alone[0])


@pytest.mark.parametrize("subsampling", KINDS)
def test_subsampling_factor(teacher, subsampling):
    factor = EncoderConfig(subsampling=subsampling).subsampling_factor
    assert factor == 2 * STRIDE[subsampling]
    frames = torch.tensor([3000, 1600, 8])
    _, lengths = student(teacher, subsampling)(torch.randn(3, 3000, N_MELS), frames)
    assert (lengths * factor).tolist() == frames.tolist()
