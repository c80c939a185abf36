"""S4D against the matrices that it stands for, built number by number, and its start against the paper's formulas."""

import cmath
import math

import numpy as np
import pytest
import torch
from ssm_cases import outcome, padding_of, randn, with_padding
from torch.testing import assert_close

from samba_asr.config import MixerConfig
from samba_asr.ssm.mixer import S4D, BidirectionalMixer, build_mixer
from samba_asr.ssm.s4d import initial_rates, s4d_scan, s4d_step

CHANNELS, STATES = 3, 4
RAGGED = torch.tensor([9, 0, 1, 2, 6])


def complex_randn(*shape):
    return torch.randn(shape, dtype=torch.complex128)


def learnt():
    """dt, A, C and D of a few channels."""
    A = torch.complex(-randn(CHANNELS, STATES).exp(), 3 * randn(CHANNELS, STATES))
    return {"dt": randn(CHANNELS).exp() / 3, "A": A, "C": complex_randn(CHANNELS, STATES), "D": randn(CHANNELS)}


def dense(x, initial_state, dt, A, C, D):
    """One sequence (length, CHANNELS): y and the last state, from (length, length) matrices."""
    length, ys, states = len(x), [], []
    for c in range(CHANNELS):
        step = torch.exp(dt[c] * A[c])
        entering = (step - 1) / A[c]
        matrix = torch.zeros(length, length, dtype=torch.float64)
        for i in range(length):
            for j in range(i + 1):
                matrix[i, j] = 2 * (C[c] * step ** (i - j) * entering).sum().real
            matrix[i, i] = matrix[i, i] + D[c]
        carried = [2 * (C[c] * step ** (i + 1) * initial_state[c]).sum().real for i in range(length)]
        ys.append(matrix @ x[:, c] + (torch.stack(carried) if carried else 0))
        each = [step ** (length - 1 - j) * entering * x[j, c] for j in range(length)]
        states.append(sum(each) + step**length * initial_state[c])
    return torch.stack(ys, 1), torch.stack(states)


def dense_batch(x, initial_state, lengths, reverse, **parameters):
    """dense, sequence by sequence, 0 on padding."""
    ys, states = [], []
    for row, length in enumerate(lengths.tolist()):
        own = x[row, :length].flip(0) if reverse else x[row, :length]
        y, state = dense(own, initial_state[row], **parameters)
        y = y.flip(0) if reverse else y
        ys.append(torch.cat([y, torch.zeros(x.shape[1] - length, CHANNELS, dtype=torch.float64)]))
        states.append(state)
    return torch.stack(ys), torch.stack(states)


def in_real_numbers(scan):
    """A scan for outcome, which draws real weights and inputs: A, C and states as pairs of numbers."""

    def function(x, dt, A, C, D, initial_state):
        A, C, initial_state = map(torch.view_as_complex, (A, C, initial_state))
        y, state = scan(x, dt=dt, A=A, C=C, D=D, initial_state=initial_state)
        return y, torch.view_as_real(state)

    return function


def real_inputs(batch, time):
    """What in_real_numbers takes."""
    inputs = learnt() | {"x": randn(batch, time, CHANNELS), "initial_state": complex_randn(batch, CHANNELS, STATES)}
    return {name: torch.view_as_real(value) if value.is_complex() else value for name, value in inputs.items()}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [1e30, torch.nan])
def test_equals_its_matrices_in_values_states_and_gradients(reverse, value):
    inputs = real_inputs(5, 9)
    expected = outcome(in_real_numbers(lambda *a, **k: dense_batch(*a, lengths=RAGGED, reverse=reverse, **k)), inputs)
    scan = in_real_numbers(lambda *a, **k: s4d_scan(*a, lengths=RAGGED, reverse=reverse, **k))
    found = outcome(scan, inputs | {"x": with_padding(inputs["x"], RAGGED, value)})
    assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert_close(found, outcome(scan, inputs), rtol=0, atol=0)
    assert not padding_of(found["y"], RAGGED).any() and not padding_of(found["gradient of x"], RAGGED).any()


@pytest.mark.parametrize("time", [1, 2, 3, 16, 17, 26])
def test_any_number_of_frames_equals_its_matrices(time):
    """The kernel is computed in blocks, whose last one may not be full."""
    parameters, x, state = learnt(), randn(1, time, CHANNELS), complex_randn(1, CHANNELS, STATES)
    y, last = dense(x[0], state[0], **parameters)
    assert_close(s4d_scan(x, **parameters, initial_state=state), (y[None], last[None]), rtol=1e-9, atol=1e-10)


def test_steps_equal_the_scan():
    parameters, x, state = learnt(), randn(2, 11, CHANNELS), complex_randn(2, CHANNELS, STATES)
    expected, outputs = s4d_scan(x, **parameters, initial_state=state), []
    for frame in x.unbind(1):
        y, state = s4d_step(frame, **parameters, state=state)
        outputs.append(y)
    assert_close((torch.stack(outputs, 1), state), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
def test_pieces_with_their_state_equal_the_whole(reverse):
    parameters, x, state, ys = learnt(), randn(5, 9, CHANNELS), None, []
    for start, end in ((7, 9), (3, 7), (0, 3)) if reverse else ((0, 3), (3, 7), (7, 9)):
        lengths = (RAGGED - start).clamp(0, end - start)
        y, state = s4d_scan(x[:, start:end], **parameters, lengths=lengths, initial_state=state, reverse=reverse)
        ys.append(y)
    whole = s4d_scan(x, **parameters, lengths=RAGGED, reverse=reverse)
    assert_close((torch.cat(ys[::-1] if reverse else ys, 1), state), whole, rtol=1e-9, atol=1e-10)


def test_reverse_is_forward_on_each_turned_round():
    parameters, x = learnt(), randn(5, 9, CHANNELS)
    turned = torch.zeros_like(x)
    for row, length in enumerate(RAGGED.tolist()):
        turned[row, :length] = x[row, :length].flip(0)
    y, state = s4d_scan(x, **parameters, lengths=RAGGED, reverse=True)
    y_turned, state_turned = s4d_scan(turned, **parameters, lengths=RAGGED)
    assert_close(state, state_turned)
    for row, length in enumerate(RAGGED.tolist()):
        assert_close(y[row, :length], y_turned[row, :length].flip(0))


def test_lin_is_half_and_multiples_of_pi():
    A = initial_rates(32, "lin")
    assert_close(A.numpy(), np.array([-0.5 + math.pi * n * 1j for n in range(32)]))


@pytest.mark.parametrize("states", [1, 4, 32])
def test_legs_is_hippo_s_normal_part(states):
    """HiPPO-LegS is normal but for a matrix of rank one (S4D paper, section 2)."""
    size = 2 * states
    A = np.zeros((size, size))
    for n in range(size):
        for k in range(n):
            A[n, k] = -math.sqrt((2 * n + 1) * (2 * k + 1))
        A[n, n] = -(n + 1)
    P = np.sqrt(np.arange(size) + 0.5)
    values = np.linalg.eigvals(A + np.outer(P, P))
    expected = sorted((value for value in values if value.imag > 0), key=lambda value: value.imag)
    assert_close(initial_rates(states, "legs").numpy(), np.array(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("init", ["legs", "lin"])
def test_a_mixer_starts_as_the_paper_s(init):
    mixer = S4D(64, MixerConfig(kind="s4d", s4d_init=init))
    assert mixer.A_imag.shape == (128, 32)
    A = torch.complex(-mixer.A_real_log.exp(), mixer.A_imag)
    assert_close(A, initial_rates(32, init).to(torch.complex64).expand(128, -1))
    steps = mixer.dt_log.exp()
    assert 0.999e-3 < steps.min() < steps.max() < 0.1001
    assert mixer.dt_log.mean().item() == pytest.approx(math.log(1e-2), abs=0.3)
    assert mixer.C.square().sum(-1).mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(mixer.D, torch.ones(128))


def test_one_channel_s_answer_to_an_impulse():
    """In Python's own complex numbers: y[0] = 2 Re(C (e^(dt A) - 1) / A) + D, then each step by e^(dt A)."""
    dt, A, C, D = 0.1, -0.5 + 3j, 0.3 - 0.7j, 0.25
    x = torch.zeros(1, 5, 1, dtype=torch.float64)
    x[0, 0, 0] = 1
    parts = (torch.tensor([dt]), torch.tensor([[A]]), torch.tensor([[C]]), torch.tensor([D]))
    y, _ = s4d_scan(x, *(part.to(torch.promote_types(part.dtype, torch.float64)) for part in parts))
    expected = [
        2 * (C * (cmath.exp(dt * A) - 1) / A * cmath.exp(dt * A) ** t).real + (D if t == 0 else 0) for t in range(5)
    ]
    assert y.flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("init", ["legs", "lin"])
@pytest.mark.parametrize("reverse", [False, True])
def test_float32_is_close_to_float64(init, reverse):
    mixer, x = build_mixer(16, MixerConfig(kind="s4d", s4d_init=init)), torch.randn(2, 1500, 16)
    lengths = torch.tensor([1500, 700])
    y, state = mixer(x, lengths, reverse=reverse)
    wide, wide_state = mixer.double()(x.double(), lengths, reverse=reverse)
    assert y.dtype == state.ssm.dtype == torch.float32
    for narrow, expected in ((y, wide), (state.ssm, wide_state.ssm)):
        assert (narrow - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_slow_state_keeps_its_precision():
    """e^(dt A) is nearly 1, and what it falls short by is what a frame adds."""
    for dt, A in ((1e-3, -0.5), (1e-5, -0.1)):
        parts = (torch.tensor([dt]), torch.tensor([[A + 0j]]), torch.tensor([[1 + 0j]]), torch.zeros(1))
        _, state = s4d_scan(torch.ones(1, 1, 1), *parts)
        assert state.real.item() == pytest.approx(math.expm1(dt * A) / A, rel=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_no_frame_hears_beyond_its_chunk(shared):
    mixer, x = BidirectionalMixer(6, MixerConfig(kind="s4d", d_state=4), shared).double(), randn(1, 12, 6)
    whole = mixer(x, None, 4)[0]
    for frame in range(12):
        changed = x.clone()
        changed[:, frame] += 1
        moved = ((mixer(changed, None, 4)[0] - whole).abs() > 1e-12).any(-1)[0]
        first = frame // 4 * 4
        assert moved.tolist() == [False] * first + [True] * (12 - first)


@pytest.mark.parametrize("name", ["dt", "A", "C", "D", "initial_state"])
def test_wrong_shapes_are_named(name):
    inputs = learnt() | {"initial_state": complex_randn(2, CHANNELS, STATES)}
    inputs[name] = inputs[name][..., :-1] if name in ("dt", "D", "C") else inputs[name][:-1]
    with pytest.raises(ValueError, match=f"^{name} has shape"):
        s4d_scan(randn(2, 5, CHANNELS), **inputs)
    with pytest.raises(ValueError, match=r"^x has shape"):
        s4d_scan(randn(2, CHANNELS), **learnt())
