"""The student: what it copies from its teacher, the error it is trained by, and its stem of 40 ms a state."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from distil_cases import D_MODEL, N_LAYERS, N_MELS, N_STATES, close, teacher_weights
from torch import nn

from samba_asr.config import EncoderConfig, MixerConfig
from samba_asr.model.encoder import Encoder
from samba_asr.ssm.mixer import Mamba2
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.student import copy_attention, copy_teacher, relative_error, student_config

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


ATTENTIVE = MixerConfig(expand=1, groups=0)


def rescaled(x, z):
    """Mamba-2's gated norm in float64."""
    gated = x * z * torch.sigmoid(z)
    return gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("expand", [1, 2])
@pytest.mark.parametrize("groups", [2, 0])
@torch.no_grad()
def test_mixers_start_from_the_attention(expand, groups):
    """Against a loop over pairs of frames with the attention's own weights: softmax is what is missing."""
    wide = build_teacher(teacher_weights(D_MODEL=128))
    config = student_config(wide, dataclasses.replace(ATTENTIVE, expand=expand, groups=groups), "whisper")
    encoder = Encoder(config)
    copy_teacher(encoder, wide)
    x = torch.randn(1, 9, 128)
    for block, taught in zip(encoder.blocks, wide.encoder.blocks, strict=True):
        attention = taught.attn.double()
        asked = attention.query(x.double()) / 8, attention.key(x.double()), attention.value(x.double())
        query, key, value = (F.silu(each).unflatten(-1, (2, 64)) for each in asked)
        said = torch.zeros(1, 9, 128, dtype=torch.float64)
        for mixer, reverse in ((block.mixer.forwards, False), (block.mixer.backwards, True)):
            mixed = mixer.in_proj(x).double()
            z, step = mixed[..., : mixer.d_inner], F.softplus(mixed[..., -mixer.heads :] + mixer.dt_bias)
            order = range(8, -1, -1) if reverse else range(9)
            heads = torch.zeros(1, 9, mixer.heads, 64, dtype=torch.float64)
            for head in range(mixer.heads):
                own, rate = head // expand, -mixer.A_log[head].double().exp()
                for i, to in enumerate(order):
                    faded = 0.0
                    for at in reversed(list(order)[: i + 1]):
                        score = (query[0, to, own] * key[0, at, own]).sum() * (faded * rate).exp()
                        heads[0, to, head] += score * step[0, at, head] * value[0, at, own]
                        faded += step[0, at, head]
                    heads[0, to, head] += mixer.D[head] * value[0, to, own]
            normed = rescaled(heads.flatten(2), z).unflatten(-1, (2, expand, 64)).mean(3).flatten(2)
            said += normed @ attention.out.weight.mT / 2
        close(block.mixer(x)[0].double(), said, 1e-5)


@pytest.mark.parametrize("expand", [1, 2])
@pytest.mark.parametrize("groups", [2, 0])
@torch.no_grad()
def test_hydra_starts_from_the_attention(expand, groups):
    """Each frame asks by its own query, though scans come a frame late; itself it hears by hydra's diagonal."""
    wide = build_teacher(teacher_weights(D_MODEL=128))
    encoder = Encoder(student_config(wide, MixerConfig(kind="hydra", expand=expand, groups=groups), "whisper"))
    copy_teacher(encoder, wide)
    x = torch.randn(1, 9, 128)
    for block, taught in zip(encoder.blocks, wide.encoder.blocks, strict=True):
        mixer, attention = block.mixer, taught.attn.double()
        asked = attention.query(x.double()) / 8, attention.key(x.double()), attention.value(x.double())
        query, key, value = (F.silu(each).unflatten(-1, (2, 64))[0] for each in asked)
        mixed = mixer.in_proj(x).double()[0]
        z, steps = mixed[:, : mixer.d_inner], F.softplus(mixed[:, -2 * mixer.heads :] + mixer.dt_bias.repeat(2))
        spoken = value.repeat_interleave(expand, 1)  # (9, heads, 64)
        heads = spoken * (spoken.flatten(1) @ mixer.fc_D.weight.double().T + mixer.D).unsqueeze(-1)
        for head in range(mixer.heads):
            own, rate = head // expand, -mixer.A_log[head].double().exp()
            for to in range(9):
                for at in set(range(9)) - {to}:
                    step = steps[:, head + mixer.heads * (at > to)]
                    score = (query[to, own] * key[at, own]).sum() * step[at]
                    heads[to, head] += score * (rate * step[min(at, to) + 1 : max(at, to)].sum()).exp() * value[at, own]
        normed = rescaled(heads.flatten(1), z).unflatten(-1, (2, expand, 64)).mean(2).flatten(1)
        close(mixer(x)[0][0].double(), normed @ attention.out.weight.mT, 1e-5)


@pytest.mark.parametrize("kind", ["hydra", "s4d"])
def test_other_mixers_build_a_student_that_trains(teacher, kind):
    encoder = Encoder(student_config(teacher, dataclasses.replace(MIXER, kind=kind), "whisper4x"))
    copy_teacher(encoder, teacher)
    features, lengths = torch.randn(2, 60, N_MELS), torch.tensor([60, 31])
    states, _ = encoder(features, lengths, chunk=5)
    assert states.shape == (2, 15, D_MODEL)
    states.square().sum().backward()
    for name, parameter in encoder.blocks.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_mixer_of_other_sizes_does_not_take_an_attention(teacher):
    mixer = Mamba2(D_MODEL, MIXER)
    before = mixer.in_proj.weight.clone()
    with pytest.raises(ValueError, match="1 groups with 64 channels and 8 states a head does not resemble"):
        copy_attention(mixer, teacher.encoder.blocks[0].attn)
    assert torch.equal(mixer.in_proj.weight, before)
    encoder = student(teacher, "whisper")
    assert not torch.equal(encoder.blocks[0].mixer.forwards.conv1d.weight[:, 0, 0], torch.zeros(D_MODEL + 16))


@torch.no_grad()
def test_shared_projections_start_from_the_attention_once(teacher):
    encoder = Encoder(student_config(teacher, ATTENTIVE, "whisper", shared_projections=True))
    copy_teacher(encoder, teacher)
    mixer, attention = encoder.blocks[0].mixer, teacher.encoder.blocks[0].attn
    close(mixer.forwards.in_proj.weight[64:128], attention.value.weight)
    close(mixer.forwards.out_proj.weight, attention.out.weight / 2)
    for way in (mixer.forwards, mixer.backwards):
        close(way.conv1d.bias[64:], torch.cat([torch.zeros(64), attention.query.bias / 8]), 1e-6)


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
