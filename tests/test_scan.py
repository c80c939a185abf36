"""The selective scan against a plain numpy loop, its backends against each other."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from ssm_cases import WRONG_LENGTHS, outcome, padding_of, randn, with_padding
from torch.testing import assert_close

from samba_asr.ssm import torch_scan
from samba_asr.ssm.scan import selective_scan, selective_scan_step
from samba_asr.ssm.torch_scan import CHUNK

BACKENDS = ["reference", "torch"]
BY_TIME = ("u", "delta", "B", "C", "z")


def make_inputs(batch=4, time=7, channels=4, d_state=3, groups=None, full=True):
    """Arguments in float64; full: with everything that may be left out except lengths."""
    by_time = (batch, time, d_state) if groups is None else (batch, time, groups, d_state)
    inputs = {
        "u": randn(batch, time, channels),
        "delta": randn(batch, time, channels).exp(),
        "A": -randn(channels, d_state).exp(),
        "B": randn(*by_time),
        "C": randn(*by_time),
    }
    if full:
        inputs |= {
            "delta": randn(batch, time, channels) * 3,
            "D": randn(channels),
            "z": randn(batch, time, channels),
            "delta_bias": randn(channels),
            "delta_softplus": True,
            "initial_state": randn(batch, channels, d_state),
        }
    return inputs


def scan(backend="auto", **options):
    return lambda **inputs: selective_scan(**inputs, **options, return_last_state=True, backend=backend)


def numpy_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, initial_state=None, lengths=None,
    reverse=False,
):  # fmt: skip
    """Channel after channel, frame after frame, state after state."""
    batch, time, channels = u.shape
    d_state = A.shape[1]
    B, C = B.reshape(batch, time, -1, d_state), C.reshape(batch, time, -1, d_state)
    per_group = channels // B.shape[2]
    y = np.zeros(u.shape)
    state = np.zeros((batch, channels, d_state)) if initial_state is None else initial_state.copy()
    for b in range(batch):
        frames = list(range(time if lengths is None else lengths[b]))
        for c in range(channels):
            for t in reversed(frames) if reverse else frames:
                step = delta[b, t, c] + (0 if delta_bias is None else delta_bias[c])
                step = np.log1p(np.exp(step)) if delta_softplus else step
                for n in range(d_state):
                    state[b, c, n] *= np.exp(step * A[c, n])
                    state[b, c, n] += step * B[b, t, c // per_group, n] * u[b, t, c]
                    y[b, t, c] += C[b, t, c // per_group, n] * state[b, c, n]
                y[b, t, c] += 0 if D is None else D[c] * u[b, t, c]
                y[b, t, c] *= 1 if z is None else z[b, t, c] / (1 + np.exp(-z[b, t, c]))
    return y, state


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [7, 0, 1, 5]])
@pytest.mark.parametrize("groups", [None, 1, 2, 4])
@pytest.mark.parametrize("full", [False, True])
def test_equals_numpy_loop(backend, reverse, lengths, groups, full):
    inputs = make_inputs(groups=groups, full=full) | {"lengths": None if lengths is None else torch.tensor(lengths)}
    plain = {name: value.numpy() if torch.is_tensor(value) else value for name, value in inputs.items()}
    expected = tuple(map(torch.from_numpy, numpy_scan(**plain, reverse=reverse)))
    assert_close(scan(backend, reverse=reverse)(**inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("option", ["D", "z", "delta_bias", "delta_softplus", "initial_state"])
def test_each_option_alone_equals_numpy_loop(option):
    inputs = make_inputs(full=False) | {option: make_inputs()[option]}
    plain = {name: value.numpy() if torch.is_tensor(value) else value for name, value in inputs.items()}
    expected = tuple(map(torch.from_numpy, numpy_scan(**plain)))
    assert_close(scan()(**inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, torch.tensor([2 * CHUNK + 3, CHUNK, 0, CHUNK + 1])])
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize(
    "in_cache", [1 << 13, 24, 12, 6, 1]
)  # one thread: all at once, two sequences, one, half, a channel
def test_torch_equals_reference_across_chunks_with_gradients(reverse, lengths, groups, in_cache, monkeypatch):
    monkeypatch.setattr(torch_scan, "IN_CACHE", in_cache)
    inputs = make_inputs(time=2 * CHUNK + 3, groups=groups) | {"lengths": lengths}
    expected = outcome(scan("reference", reverse=reverse), inputs)
    assert len(expected) == 2 + 9
    assert_close(outcome(scan("torch", reverse=reverse), inputs), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("d_state", [1, 16])
def test_torch_in_float32_is_near_float64_reference(reverse, d_state):
    inputs = make_inputs(batch=3, time=200, channels=24, d_state=d_state) | {"lengths": torch.tensor([200, 1, 77])}
    expected = outcome(scan("reference", reverse=reverse), inputs)
    single = {
        name: value.float() if name != "lengths" and torch.is_tensor(value) else value for name, value in inputs.items()
    }
    for name, value in outcome(scan("torch", reverse=reverse), single).items():
        assert (value - expected[name]).abs().max() < 1e-4 * expected[name].abs().max().clamp(min=1), name


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "initial_state"])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time", [2, CHUNK + 3])  # two frames go another way
def test_torch_has_the_gradient_of_one_input_alone(name, twice, reverse, time):
    """Once and twice: the second time it is computed in another way."""
    inputs, found = make_inputs(time=time), []
    for backend in BACKENDS:
        leaf = inputs[name].clone().requires_grad_()
        y, state = scan(backend, reverse=reverse)(**inputs | {name: leaf})
        (gradient,) = torch.autograd.grad(y.square().sum() + state.square().sum(), leaf, create_graph=twice)
        if twice:
            (gradient,) = torch.autograd.grad(gradient.square().sum(), leaf)
        found.append(gradient)
    assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


MEMORY = """
import resource, sys, torch
from samba_asr.ssm.scan import selective_scan
gradient = sys.argv[1] == "gradient"
def run(time):
    u, B = (torch.zeros(1, time, width, requires_grad=gradient) for width in (512, 16))
    with torch.inference_mode(not gradient):
        y = selective_scan(u, u, -torch.ones(512, 16), B, B, backend="torch")
    if gradient:
        y.backward(u.detach())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(100); before = peak(); run(8_000); print((peak() - before) * 1024 / (4 * 8_000 * 512))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes, as Linux does")
@pytest.mark.parametrize(("which", "most"), [("none", 4), ("gradient", 8)])
def test_torch_has_only_a_chunk_of_states_in_memory(which, most):
    """In times the size of u: of which, of y, and of a few chunks there is one; for a gradient also a state of each
    chunk of 16, three gradients, and what autograd adds up. All states would be 16, more than once."""
    command = [sys.executable, "-c", MEMORY, which]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < most


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_equal_finite_differences(backend, reverse):
    inputs = make_inputs(batch=2, time=3, channels=2, d_state=2) | {"lengths": torch.tensor([3, 2])}
    names = [name for name, value in inputs.items() if torch.is_tensor(value) and value.is_floating_point()]

    def function(*tensors):
        return scan(backend, reverse=reverse)(**inputs | dict(zip(names, tensors, strict=True)))

    leaves = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [1e30, torch.nan, torch.inf, -torch.inf])
def test_padding_changes_nothing(backend, reverse, value):
    lengths = torch.tensor([7, 0, 1, 5])
    inputs = make_inputs(groups=2) | {"lengths": lengths}
    spoilt = inputs | {name: with_padding(inputs[name], lengths, value) for name in BY_TIME}
    found = outcome(scan(backend, reverse=reverse), spoilt)
    assert_close(found, outcome(scan(backend, reverse=reverse), inputs), rtol=0, atol=0)
    for name in ("y", *(f"gradient of {name}" for name in BY_TIME)):
        assert not padding_of(found[name], lengths).any(), name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, torch.tensor([7, 0, 2, 5])])
@pytest.mark.parametrize("border", [0, 1, 4, 7])
def test_two_parts_equal_whole(reverse, lengths, border):
    inputs = make_inputs()
    y, state = scan(reverse=reverse)(**inputs, lengths=lengths)
    carried, parts = inputs["initial_state"], {}
    for start, end in [(border, 7), (0, border)] if reverse else [(0, border), (border, 7)]:
        part = inputs | {name: inputs[name][:, start:end] for name in BY_TIME} | {"initial_state": carried}
        part["lengths"] = None if lengths is None else (lengths - start).clamp(0, end - start)
        parts[start, end], carried = scan(reverse=reverse)(**part)
    assert_close(torch.cat([parts[0, border], parts[border, 7]], 1), y)
    assert_close(carried, state)


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("full", [False, True])
def test_step_loop_equals_forward(groups, full):
    inputs = make_inputs(groups=groups, full=full)
    y, last_state = scan()(**inputs)
    state, outputs = inputs.pop("initial_state", torch.zeros_like(last_state)), []
    for t in range(7):
        frame = inputs | {name: inputs[name][:, t] for name in BY_TIME if name in inputs}
        output, state = selective_scan_step(**frame, state=state)
        outputs.append(output)
    assert_close((torch.stack(outputs, 1), state), (y, last_state))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "time"), [(0, 7), (2, 0)])
def test_nothing_to_scan(backend, batch, time):
    inputs = make_inputs(batch=batch, time=time)
    y, state = scan(backend)(**inputs)
    assert y.shape == (batch, time, 4)
    assert torch.equal(state, inputs["initial_state"])


def test_returns_y_alone_unless_asked():
    inputs = make_inputs()
    assert torch.equal(selective_scan(**inputs), scan()(**inputs)[0])


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_float32_inside(backend, autocast):
    inputs = make_inputs()
    inputs |= {name: inputs[name].bfloat16() for name in BY_TIME}
    inputs |= {name: inputs[name].float() for name in ("A", "D", "delta_bias", "initial_state")}
    wide = {name: value.float() if torch.is_tensor(value) else value for name, value in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = outcome(scan(backend), inputs)
    plain = outcome(scan(backend), inputs)
    assert_close(found, plain, rtol=0, atol=0)  # gradients, too
    y, state = scan(backend)(**wide)
    assert found["y"].dtype == torch.bfloat16
    assert torch.equal(found["y"], y.bfloat16())
    assert torch.equal(found["state"], state)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_tiny_steps_in_bfloat16_keep_the_state(backend):
    time, delta = 2000, torch.tensor(1e-3, dtype=torch.bfloat16)
    ones = torch.ones(1, time, 1, dtype=torch.bfloat16)
    y, state = scan(backend)(u=ones, delta=ones * delta, A=-torch.ones(1, 1), B=ones, C=ones)
    # A step of 0.001 is lost beside a state near 1 in bfloat16, whose numbers lie 0.004 apart there.
    settled = 1 - torch.exp(-time * delta.double())
    assert_close(state.double().squeeze(), settled, rtol=2e-3, atol=0)
    assert_close(y[0, -1, 0].double(), settled, rtol=5e-3, atol=0)


WRONG_SHAPES = [
    ("u", (2, 5)),
    ("delta", (2, 5, 1)),
    ("delta", (2, 4, 4)),
    ("A", (4,)),
    ("A", (3, 3)),
    ("B", (2, 3)),
    ("B", (1, 5, 3)),
    ("B", (2, 5, 2)),
    ("B", (2, 5, 2, 2)),
    ("C", (2, 5, 2)),
    ("C", (2, 5, 2, 3)),
    ("D", (1,)),
    ("z", (2, 5, 1)),
    ("delta_bias", (1,)),
    ("initial_state", (1, 4, 3)),
    ("initial_state", (2, 3, 4)),
]


@pytest.mark.parametrize(("name", "shape"), WRONG_SHAPES)
def test_wrong_shape(name, shape):
    with pytest.raises(ValueError, match=rf"^{name} has shape {re.escape(str(shape))}, expected \("):
        selective_scan(**make_inputs(batch=2, time=5) | {name: randn(*shape)})


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "lengths"])
def test_all_must_be_on_one_device(name):
    inputs = make_inputs(batch=2, time=5) | {"lengths": torch.tensor([5, 3])}
    with pytest.raises(ValueError, match=f"^{name} is on meta, the first argument on cpu; move it there"):
        selective_scan(**inputs | {name: inputs[name].to("meta")})


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_must_divide_channels(groups):
    with pytest.raises(ValueError, match=f"B has {groups} groups, which must divide the 4 channels"):
        selective_scan(**make_inputs(batch=2, time=5, groups=groups))


@pytest.mark.parametrize("lengths", WRONG_LENGTHS.values(), ids=WRONG_LENGTHS)
def test_wrong_lengths(lengths):
    with pytest.raises(ValueError, match="lengths"):
        selective_scan(**make_inputs(batch=2, time=5), lengths=lengths)


def test_wrong_backend():
    with pytest.raises(ValueError, match=r"'cuda'.*'reference', 'torch'"):
        selective_scan(**make_inputs(), backend="cuda")
