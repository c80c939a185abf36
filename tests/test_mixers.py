"""The mixers of one direction against plain numpy, and what they promise about padding, direction and state."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ssm_cases import WRONG_LENGTHS, outcome, padding_of, randn, with_padding
from torch.testing import assert_close

from samba_asr.config import MixerConfig
from samba_asr.ssm.mixer import S4D, BidirectionalMixer, Mamba, Mamba2, MixerState, build_mixer

D_MODEL, D_STATE, D_CONV, D_INNER, HEAD_DIM, HEADS, DT_RANK = 6, 4, 3, 12, 3, 4, 2
KINDS = ["mamba", "mamba2", "mamba2 with groups", "s4d"]
GROUPS = 2
"""Of the one with groups."""
RAGGED = torch.tensor([9, 0, 1, 2, 6])
CONFIG = {
    kind: MixerConfig(
        kind=kind.split()[0],
        d_state=D_STATE,
        d_conv=D_CONV,
        head_dim=HEAD_DIM,
        groups=GROUPS if "groups" in kind else 1,
        dt_rank=DT_RANK,
        chunk_size=4,
    )
    for kind in KINDS
}
SHAPES = {
    "mamba": {
        "A_log": (D_INNER, D_STATE),
        "D": (D_INNER,),
        "in_proj.weight": (2 * D_INNER, D_MODEL),
        "conv1d.weight": (D_INNER, 1, D_CONV),
        "conv1d.bias": (D_INNER,),
        "x_proj.weight": (DT_RANK + 2 * D_STATE, D_INNER),
        "dt_proj.weight": (D_INNER, DT_RANK),
        "dt_proj.bias": (D_INNER,),
        "out_proj.weight": (D_MODEL, D_INNER),
    },
    "mamba2": {
        "dt_bias": (HEADS,),
        "A_log": (HEADS,),
        "D": (HEADS,),
        "in_proj.weight": (2 * D_INNER + 2 * D_STATE + HEADS, D_MODEL),
        "conv1d.weight": (D_INNER + 2 * D_STATE, 1, D_CONV),
        "conv1d.bias": (D_INNER + 2 * D_STATE,),
        "norm.weight": (D_INNER,),
        "out_proj.weight": (D_MODEL, D_INNER),
    },
    "s4d": {
        "dt_log": (D_INNER,),
        "A_real_log": (D_INNER, D_STATE // 2),
        "A_imag": (D_INNER, D_STATE // 2),
        "C": (D_INNER, D_STATE // 2, 2),
        "D": (D_INNER,),
        "in_proj.weight": (2 * D_INNER, D_MODEL),
        "out_proj.weight": (D_MODEL, D_INNER),
    },
}
"""Names, order and shapes of the parameters; mambas' are those of mamba_ssm."""
SHAPES["mamba2 with groups"] = SHAPES["mamba2"] | {
    "in_proj.weight": (2 * D_INNER + 2 * GROUPS * D_STATE + HEADS, D_MODEL),
    "conv1d.weight": (D_INNER + 2 * GROUPS * D_STATE, 1, D_CONV),
    "conv1d.bias": (D_INNER + 2 * GROUPS * D_STATE,),
}


def make_mixer(kind):
    """A mixer in float64 whose every parameter matters: none is left at 0 or 1."""
    mixer = build_mixer(D_MODEL, CONFIG[kind]).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    return mixer


def make_state(kind, batch):
    if kind == "s4d":
        return MixerState(randn(batch, 0, D_INNER), randn(batch, D_INNER, D_STATE // 2, 2))
    channels = SHAPES[kind]["conv1d.bias"][0]
    ssm = (D_INNER, D_STATE) if kind == "mamba" else (HEADS, HEAD_DIM, D_STATE)
    return MixerState(randn(batch, D_CONV - 1, channels), randn(batch, *ssm))


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def numpy_conv(frames, before, weights):
    """frames, before: lists of (channels,). Returns the output frames and the last d_conv - 1 input frames."""
    seen = [*before, *frames]
    taps = weights["conv1d.weight"][:, 0].T
    outputs = [
        silu(weights["conv1d.bias"] + sum(tap * frame for tap, frame in zip(taps, seen[t:], strict=False)))
        for t in range(len(frames))
    ]
    return outputs, seen[len(seen) - D_CONV + 1 :]


def numpy_mamba(frames, before, h, weights):
    """One sequence: frames, list of (d_model,); before, list of (channels,); h (d_inner, d_state)."""
    projected = [weights["in_proj.weight"] @ frame for frame in frames]
    inputs, before = numpy_conv([p[:D_INNER] for p in projected], before, weights)
    outputs = []
    for x, z in zip(inputs, [p[D_INNER:] for p in projected], strict=True):
        low_rank, B, C = np.split(weights["x_proj.weight"] @ x, [DT_RANK, DT_RANK + D_STATE])
        delta = softplus(weights["dt_proj.weight"] @ low_rank + weights["dt_proj.bias"])
        h = np.exp(delta[:, None] * -np.exp(weights["A_log"])) * h + np.outer(delta * x, B)
        outputs.append(weights["out_proj.weight"] @ ((h @ C + weights["D"] * x) * silu(z)))
    return outputs, before, h


def numpy_mamba2(frames, before, h, weights):
    """As numpy_mamba; h (heads, head_dim, d_state)."""
    channels = len(weights["conv1d.bias"])
    groups = (channels - D_INNER) // (2 * D_STATE)
    cuts = [D_INNER, D_INNER + channels]
    projected = [np.split(weights["in_proj.weight"] @ frame, cuts) for frame in frames]
    mixed, before = numpy_conv([xBC for _, xBC, _ in projected], before, weights)
    outputs = []
    for xBC, (z, _, dt) in zip(mixed, projected, strict=True):
        x, B, C = np.split(xBC, [D_INNER, D_INNER + groups * D_STATE])
        B, C = (part.reshape(groups, D_STATE).repeat(HEADS // groups, 0) for part in (B, C))
        delta, y = softplus(dt + weights["dt_bias"]), []
        h = h.copy()
        for head, heads_x in enumerate(x.reshape(HEADS, HEAD_DIM)):
            h[head] *= np.exp(-delta[head] * np.exp(weights["A_log"][head]))
            h[head] += np.outer(delta[head] * heads_x, B[head])
            y.append(h[head] @ C[head] + weights["D"][head] * heads_x)
        gated = np.concatenate(y) * silu(z)
        normed = gated / np.sqrt(np.mean(gated**2) + 1e-5) * weights["norm.weight"]
        outputs.append(weights["out_proj.weight"] @ normed)
    return outputs, before, h


def numpy_s4d(frames, before, h, weights):
    """As numpy_mamba; h (d_inner, d_state / 2, 2)."""
    dt, h = np.exp(weights["dt_log"])[:, None], h[..., 0] + 1j * h[..., 1]
    A = -np.exp(weights["A_real_log"]) + 1j * weights["A_imag"]
    C = weights["C"][..., 0] + 1j * weights["C"][..., 1]
    outputs = []
    for frame in frames:
        x, z = np.split(weights["in_proj.weight"] @ frame, 2)
        h = np.exp(dt * A) * h + (np.exp(dt * A) - 1) / A * x[:, None]
        y = 2 * (C * h).sum(1).real + weights["D"] * x
        outputs.append(weights["out_proj.weight"] @ (y * silu(z)))
    return outputs, np.zeros((0, D_INNER)), np.stack([h.real, h.imag], -1)


def numpy_batch(mixer, x, lengths, state, reverse):
    """Run the numpy mixer on each sequence alone."""
    one = {Mamba: numpy_mamba, Mamba2: numpy_mamba2, S4D: numpy_s4d}[type(mixer)]
    weights = {name: parameter.detach().numpy() for name, parameter in mixer.named_parameters()}
    way = -1 if reverse else 1
    y, convs, ssms = np.zeros(x.shape), [], []
    for row, length in enumerate(lengths.tolist()):
        frames, before = list(x[row, :length].numpy())[::way], list(state.conv[row].numpy())[::way]
        outputs, before, h = one(frames, before, state.ssm[row].numpy(), weights)
        y[row, :length] = np.array(outputs[::way]).reshape(length, D_MODEL)
        convs.append(before[::way])
        ssms.append(h)
    return torch.from_numpy(y), MixerState(torch.tensor(np.array(convs)), torch.tensor(np.array(ssms)))


def with_all_gradients(mixer, lengths=None, reverse=False):
    """A function of x, the state and the mixer's parameters, for outcome."""

    def function(x, conv, ssm, **parameters):
        inputs = (x, lengths, MixerState(conv, ssm), reverse)
        y, state = torch.func.functional_call(mixer, parameters, inputs)
        return y, torch.cat([state.conv.flatten(1), state.ssm.flatten(1)], 1)

    return function


def all_inputs(kind, mixer, batch, time):
    state = make_state(kind, batch)
    return {"x": randn(batch, time, D_MODEL), "conv": state.conv, "ssm": state.ssm} | dict(mixer.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_of_parameters(kind):
    mixer = build_mixer(D_MODEL, CONFIG[kind])
    assert {name: tuple(value.shape) for name, value in mixer.state_dict().items()} == SHAPES[kind]
    assert list(dict(mixer.named_parameters())) == list(SHAPES[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [torch.tensor([9] * 5), RAGGED])
def test_equals_numpy(kind, reverse, lengths):
    mixer, x, state = make_mixer(kind), randn(5, 9, D_MODEL), make_state(kind, 5)
    y, last = mixer(x, lengths, state, reverse)
    assert_close((y, last), numpy_batch(mixer, x, lengths, state, reverse), rtol=1e-9, atol=1e-9)
    if lengths is not RAGGED:
        assert_close(mixer(x, None, state, reverse), (y, last))


@pytest.mark.parametrize("kind", KINDS)
def test_no_state_is_the_state_before_any_frame(kind):
    mixer, x = make_mixer(kind), randn(2, 5, D_MODEL)
    state = mixer.initial_state(2)
    assert [part.shape for part in state] == [part.shape for part in make_state(kind, 2)]
    assert not any(part.any() for part in state)
    assert_close(mixer(x), mixer(x, state=state), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_step_loop_equals_forward(kind):
    mixer, x, state = make_mixer(kind), randn(3, 9, D_MODEL), make_state(kind, 3)
    expected, outputs = mixer(x, state=state), []
    for frame in x.unbind(1):
        y, state = mixer.step(frame, state)
        outputs.append(y)
    assert_close((torch.stack(outputs, 1), state), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("border", [0, 1, 5, 8])
def test_two_parts_equal_whole(kind, reverse, lengths, border):
    mixer, x, carried, parts = make_mixer(kind), randn(5, 9, D_MODEL), make_state(kind, 5), {}
    expected = mixer(x, lengths, carried, reverse)
    for start, end in [(border, 9), (0, border)] if reverse else [(0, border), (border, 9)]:
        part_lengths = None if lengths is None else (lengths - start).clamp(0, end - start)
        parts[start, end], carried = mixer(x[:, start:end], part_lengths, carried, reverse)
    assert_close((torch.cat([parts[0, border], parts[border, 9]], 1), carried), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_reordered_state_goes_on_with_the_picked_sequences(kind):
    mixer, x, later, picked = make_mixer(kind), randn(3, 5, D_MODEL), randn(4, D_MODEL), torch.tensor([2, 0, 2, 1])
    state = mixer(x)[1].reorder(picked)
    assert isinstance(state, MixerState)
    assert_close(mixer.step(later, state), mixer.step(later, mixer(x[picked])[1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [1e30, torch.nan, torch.inf])
def test_padding_changes_nothing(kind, reverse, value):
    mixer = make_mixer(kind)
    inputs = all_inputs(kind, mixer, 5, 9)
    function = with_all_gradients(mixer, RAGGED, reverse)
    found = outcome(function, inputs | {"x": with_padding(inputs["x"], RAGGED, value)})
    assert_close(found, outcome(function, inputs), rtol=0, atol=0)
    assert len(found) == 2 + 3 + len(SHAPES[kind])
    for name in ("y", "gradient of x"):
        assert not padding_of(found[name], RAGGED).any(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_equal_finite_differences(kind, reverse):
    mixer = make_mixer(kind)
    inputs = {name: value.detach() for name, value in all_inputs(kind, mixer, 2, 3).items()}
    function = with_all_gradients(mixer, torch.tensor([3, 1]), reverse)

    def of_tensors(*tensors):
        return function(**dict(zip(inputs, tensors, strict=True)))

    tensors = [value.requires_grad_() for value in inputs.values()]
    assert torch.autograd.gradcheck(of_tensors, tensors, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [1.0, torch.nan])
@pytest.mark.parametrize("shared", [False, True])
def test_bidirectional_batch_equals_each_alone_with_gradients(kind, value, shared):
    mixer = BidirectionalMixer(D_MODEL, CONFIG[kind], shared).double()
    x, weights = randn(5, 9, D_MODEL), randn(5, 9, D_MODEL)
    batched = with_padding(x, RAGGED, value).requires_grad_()
    y, lengths = mixer(batched, RAGGED)
    assert lengths is RAGGED
    assert not padding_of(y, RAGGED).any()
    gradients = torch.autograd.grad((y * weights).sum(), [batched, *mixer.parameters()])

    total = [torch.zeros_like(gradient) for gradient in gradients]
    for row, length in enumerate(RAGGED.tolist()):
        alone = x[row : row + 1, :length].requires_grad_()
        y_alone, no_lengths = mixer(alone)
        assert no_lengths is None
        assert_close(y[row, :length], y_alone[0])
        if length:
            loss = (y_alone * weights[row, :length]).sum()
            of_x, *of_parameters = torch.autograd.grad(loss, [alone, *mixer.parameters()])
            total[0][row, :length] = of_x[0]
            for into, gradient in zip(total[1:], of_parameters, strict=True):
                into += gradient
    assert_close(list(gradients), total)


@pytest.mark.parametrize("kind", KINDS)
def test_bidirectional_is_the_sum_of_two_directions_with_their_own_weights(kind):
    mixer, x = BidirectionalMixer(D_MODEL, CONFIG[kind]), torch.randn(2, 7, D_MODEL)
    flipped = mixer.backwards(x.flip(1))[0].flip(1)
    assert_close(mixer(x)[0], mixer.forwards(x)[0] + flipped)
    expected = [f"{way}.{name}" for way in ("forwards", "backwards") for name in SHAPES[kind]]
    assert list(dict(mixer.named_parameters())) == expected
    assert not torch.equal(mixer.forwards.in_proj.weight, mixer.backwards.in_proj.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 1, 4, 20])
def test_shared_projections_equal_two_mixers_with_the_same_ones(kind, chunk):
    shared, apart = (BidirectionalMixer(D_MODEL, CONFIG[kind], common).double() for common in (True, False))
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    weights = shared.state_dict()
    common = ("in_proj.weight", "out_proj.weight")
    assert [name for name in SHAPES[kind] if f"backwards.{name}" not in weights] == list(common)
    apart.load_state_dict(weights | {f"backwards.{name}": weights[f"forwards.{name}"] for name in common})
    x = with_padding(randn(5, 9, D_MODEL), RAGGED, torch.nan)
    assert_close(shared(x, RAGGED, chunk), apart(x, RAGGED, chunk))
    assert shared.out_projections() == [shared.forwards.out_proj]
    assert apart.out_projections() == [apart.forwards.out_proj, apart.backwards.out_proj]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_close_to_float32_and_trains(kind):
    mixer, x = BidirectionalMixer(D_MODEL, CONFIG[kind]), torch.randn(5, 9, D_MODEL)
    expected = mixer(x, RAGGED)[0]
    state = mixer.forwards.initial_state(5)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = mixer(x, RAGGED)
        step, state = mixer.forwards.step(x[:, 0], state)
    assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    assert_close(step.float(), mixer.forwards(x[:, :1])[0][:, 0], rtol=0.05, atol=0.05)
    assert state.ssm.dtype == torch.float32
    y.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights_keep_a_float32_state(kind):
    mixer, x = build_mixer(D_MODEL, CONFIG[kind]), torch.randn(2, 9, D_MODEL)
    expected = mixer(x)[0]
    mixer.bfloat16()
    y, state = mixer(x.bfloat16())
    step, after = mixer.step(x[:, 0].bfloat16(), mixer.initial_state(2))
    assert y.dtype == step.dtype == torch.bfloat16
    assert mixer.initial_state(2).ssm.dtype == state.ssm.dtype == after.ssm.dtype == torch.float32
    assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_initial_steps_and_rates_are_those_of_the_papers(kind):
    mixer = build_mixer(256, MixerConfig(kind=kind))
    bias = mixer.dt_proj.bias if kind == "mamba" else mixer.dt_bias
    steps = F.softplus(bias).detach()
    assert 0.999e-3 < steps.min() < steps.max() < 0.1001
    rates = mixer.A_log.exp()
    if kind == "mamba":
        assert steps.log().mean() == pytest.approx(math.log(1e-2), abs=0.3)
        assert mixer.dt_rank == 16
        assert_close(rates, torch.arange(1.0, 17).repeat(512, 1))
    else:
        assert 1 <= rates.min() < rates.max() <= 16
    assert torch.equal(mixer.D, torch.ones_like(mixer.D))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "time"), [(0, 4), (2, 0)])
def test_no_frames(kind, batch, time):
    mixer, state = make_mixer(kind), make_state(kind, batch)
    for reverse in (False, True):
        y, last = mixer(randn(batch, time, D_MODEL), None, state, reverse)
        assert y.shape == (batch, time, D_MODEL)
        assert_close(last, state, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, D_MODEL), (2, 5, D_MODEL + 1), (1, 2, 5, D_MODEL)])
def test_wrong_shape(kind, shape):
    with pytest.raises(ValueError, match=rf"^x has shape .*, expected \(batch, time, {D_MODEL}\)"):
        make_mixer(kind)(randn(*shape))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", WRONG_LENGTHS.values(), ids=WRONG_LENGTHS)
def test_wrong_lengths(kind, lengths):
    with pytest.raises(ValueError, match="lengths"):
        make_mixer(kind)(randn(2, 5, D_MODEL), lengths)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", MixerState._fields)
def test_wrong_state(kind, part):
    mixer, state = make_mixer(kind), make_state(kind, 2)
    wrong = state._replace(**{part: getattr(make_state(kind, 1), part)})
    with pytest.raises(ValueError, match="initial_state has shape"):
        mixer(randn(2, 5, D_MODEL), state=wrong)
    with pytest.raises(ValueError, match="initial_state has shape"):
        mixer.step(randn(2, D_MODEL), wrong)


def test_head_dim_must_divide_d_inner():
    with pytest.raises(ValueError, match=r"head_dim \(64\) must divide expand \* d_model \(20\)"):
        Mamba2(10, MixerConfig())
