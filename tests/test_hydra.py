"""Hydra against the matrix that it stands for, built number by number; what it promises about padding and chunks."""

import pytest
import torch
import torch.nn.functional as F
from ssm_cases import WRONG_LENGTHS, padding_of, randn, with_padding
from torch.testing import assert_close

from samba_asr.config import MixerConfig
from samba_asr.ssm.hydra import Hydra, centred_conv1d

D_MODEL, D_STATE, D_CONV, D_INNER, HEAD_DIM, HEADS = 6, 4, 3, 12, 3, 4
RAGGED = torch.tensor([9, 0, 1, 2, 6])
CONFIG = MixerConfig(kind="hydra", d_state=D_STATE, d_conv=D_CONV, head_dim=HEAD_DIM, chunk_size=4)


def make_mixer(groups=1):
    """A mixer in float64 whose every parameter matters: none is left at 0 or 1."""
    mixer = Hydra(D_MODEL, MixerConfig(**{**vars(CONFIG), "groups": groups})).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    return mixer


def end_of(frame, length, chunk):
    """Where the future ends that a frame may hear."""
    return length if chunk is None else min(length, (frame // chunk + 1) * chunk)


def matrices(x, steps, B, C, own, mixer, length, chunk):
    """One (length, length) matrix a head; B, C: forwards and backwards, (length, heads, D_STATE); steps alike."""
    A = -mixer.A_log.exp()
    for head in range(HEADS):
        rows = []
        for i in range(length):
            row = [torch.zeros((), dtype=torch.float64)] * length
            row[i] = own[i, head]
            for j in range(i):
                faded = steps[0][j + 1 : i, head].sum()
                row[j] = (C[0][i - 1, head] @ B[0][j, head]) * torch.exp(A[head] * faded) * steps[0][j, head]
            for j in range(i + 1, end_of(i, length, chunk)):
                faded = steps[1][i + 1 : j, head].sum()
                row[j] = (C[1][i + 1, head] @ B[1][j, head]) * torch.exp(A[head] * faded) * steps[1][j, head]
            rows.append(torch.stack(row))
        yield torch.stack(rows)


def dense(mixer, x, chunk=None):
    """One sequence: x (length, D_MODEL), to the same shape."""
    length, states = len(x), mixer.groups * D_STATE
    if not length:
        return x
    z, mixed, steps = (x @ mixer.in_proj.weight.T).split([D_INNER, D_INNER + 4 * states, 2 * HEADS], 1)
    frames = []
    for t in range(length):
        seen = range(max(0, t - D_CONV + 1), min(end_of(t, length, chunk), t + D_CONV))
        frames.append(mixer.conv1d.bias + sum(mixer.conv1d.weight[:, 0, D_CONV - 1 + s - t] * mixed[s] for s in seen))
    mixed = F.silu(torch.stack(frames))
    x, *parts = mixed.split([D_INNER, states, states, states, states], 1)
    parts = [part.view(length, mixer.groups, D_STATE).repeat_interleave(HEADS // mixer.groups, 1) for part in parts]
    steps = [F.softplus(step + mixer.dt_bias) for step in steps.split(HEADS, 1)]
    own = x @ mixer.fc_D.weight.T + mixer.D
    each = matrices(x, steps, parts[0::2], parts[1::2], own, mixer, length, chunk)
    y = torch.cat([matrix @ x[:, HEAD_DIM * head :][:, :HEAD_DIM] for head, matrix in enumerate(each)], 1)
    gated = y * F.silu(z)
    normed = gated / (gated.square().mean(1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    return normed @ mixer.out_proj.weight.T


@pytest.mark.parametrize("groups", [1, 2, 0])
@pytest.mark.parametrize("chunk", [None, 1, 4, 20])
@pytest.mark.parametrize("value", [1e30, torch.nan])
def test_equals_its_matrix_in_values_and_gradients(groups, chunk, value):
    mixer, x, weights = make_mixer(groups), randn(5, 9, D_MODEL), randn(5, 9, D_MODEL)
    leaves = [x.requires_grad_(), *mixer.parameters()]
    expected = [dense(mixer, row[:length], chunk) for row, length in zip(x, RAGGED.tolist(), strict=True)]
    loss = sum((y * weights[row, : len(y)]).sum() for row, y in enumerate(expected))
    of_expected = torch.autograd.grad(loss, leaves)

    given = with_padding(x.detach(), RAGGED, value).requires_grad_()
    y, lengths = mixer(given, RAGGED, chunk)
    assert lengths is RAGGED
    assert not padding_of(y, RAGGED).any()
    for row, one in zip(y, expected, strict=True):
        assert_close(row[: len(one)], one, rtol=1e-9, atol=1e-10)
    found = torch.autograd.grad((y * weights).sum(), [given, *mixer.parameters()])
    assert_close(found, of_expected, rtol=1e-8, atol=1e-9)
    assert not padding_of(found[0], RAGGED).any()


@pytest.mark.parametrize("chunk", [None, 4])
def test_without_lengths_all_frames_count(chunk):
    mixer, x = make_mixer(), randn(2, 9, D_MODEL)
    y, lengths = mixer(x, None, chunk)
    assert lengths is None
    assert_close(y, mixer(x, torch.tensor([9, 9]), chunk)[0], rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_no_frame_hears_beyond_its_chunk(chunk):
    mixer, x = make_mixer(), randn(1, 12, D_MODEL)
    whole = mixer(x, None, chunk)[0]
    for frame in range(12):
        changed = x.clone()
        changed[:, frame] += 1
        moved = (mixer(changed, None, chunk)[0] != whole).any(-1)[0]
        first = frame // chunk * chunk
        assert moved.tolist() == [False] * first + [True] * (12 - first)


def test_without_chunks_every_frame_hears_every_other():
    mixer, x = make_mixer(), randn(1, 12, D_MODEL)
    for frame in (0, 11):
        changed = x.clone()
        changed[:, frame] += 1
        assert (mixer(changed)[0] != mixer(x)[0]).any(-1).all()


@pytest.mark.parametrize("chunk", [None, 4])
def test_float32_and_its_kernels_are_close_to_float64(chunk):
    mixer = Hydra(32, MixerConfig(kind="hydra", d_state=16, head_dim=16, groups=2))
    x, lengths = torch.randn(2, 150, 32), torch.tensor([150, 70])
    narrow = mixer(x, lengths, chunk)[0]
    assert narrow.dtype == torch.float32
    assert_close(narrow.double(), mixer.double()(x.double(), lengths, chunk)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("chunk", [None, 4])
def test_autocast_is_close_to_float32_and_trains(chunk):
    mixer, x = Hydra(D_MODEL, CONFIG), torch.randn(5, 9, D_MODEL)
    expected = mixer(x, RAGGED, chunk)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = mixer(x, RAGGED, chunk)
    assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    y.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


def test_sizes_are_the_papers():
    mixer = Hydra(64, MixerConfig(kind="hydra"))
    assert {name: tuple(value.shape) for name, value in mixer.named_parameters()} == {
        "dt_bias": (2,),
        "A_log": (2,),
        "D": (2,),
        "in_proj.weight": (2 * 128 + 4 * 64 + 2 * 2, 64),
        "conv1d.weight": (128 + 4 * 64, 1, 7),
        "conv1d.bias": (128 + 4 * 64,),
        "fc_D.weight": (2, 128),
        "norm.weight": (128,),
        "out_proj.weight": (64, 128),
    }
    assert mixer.out_projections() == [mixer.out_proj]
    steps = F.softplus(mixer.dt_bias)
    assert 0.999e-3 < steps.min() <= steps.max() < 0.1001


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(("batch", "time"), [(0, 9), (2, 0)])
def test_no_frames(batch, time, chunk):
    assert make_mixer()(randn(batch, time, D_MODEL), None, chunk)[0].shape == (batch, time, D_MODEL)


def test_the_convolution_of_one_frame_is_its_middle():
    weight, bias, x = randn(5, 1, 7), randn(5), randn(2, 1, 5)
    assert_close(centred_conv1d(x, weight, bias), F.silu(x * weight[:, 0, 3] + bias))


@pytest.mark.parametrize("shape", [(2, D_MODEL), (2, 5, D_MODEL + 1)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match=rf"^x has shape .*, expected \(batch, time, {D_MODEL}\)"):
        make_mixer()(randn(*shape))


@pytest.mark.parametrize("lengths", WRONG_LENGTHS.values(), ids=WRONG_LENGTHS)
def test_wrong_lengths(lengths):
    with pytest.raises(ValueError, match="lengths"):
        make_mixer()(randn(2, 5, D_MODEL), lengths)


def test_wrong_chunk_and_sizes():
    with pytest.raises(ValueError, match=r"chunk \(0\) must be a positive number of frames"):
        make_mixer()(randn(2, 5, D_MODEL), None, 0)
    with pytest.raises(ValueError, match=r"head_dim \(64\) must divide expand \* d_model \(20\)"):
        Hydra(10, MixerConfig(kind="hydra"))
    with pytest.raises(ValueError, match=r"groups \(3\) must divide the number of heads \(2\)"):
        Hydra(64, MixerConfig(kind="hydra", groups=3))
