"""The SSD scan against the selective scan's reference with A repeated for every channel and state of a head."""

import re

import pytest
import torch
from ssm_cases import WRONG_LENGTHS, outcome, padding_of, randn, with_padding
from torch.testing import assert_close

from samba_asr.ssm.scan import selective_scan
from samba_asr.ssm.ssd import ssd_scan, ssd_step

BY_TIME = ("x", "delta", "B", "C")
RAGGED = torch.tensor([20, 0, 1, 15])


def make_inputs(batch=4, time=20, heads=2, head_dim=3, d_state=4, full=True, groups=None):
    """Arguments in float64; full: with everything that may be left out except lengths; groups: None shares B and C."""
    of_state = (d_state,) if groups is None else (groups, d_state)
    inputs = {
        "x": randn(batch, time, heads, head_dim),
        "delta": randn(batch, time, heads).exp(),
        "A": -randn(heads).exp(),
        "B": randn(batch, time, *of_state),
        "C": randn(batch, time, *of_state),
    }
    if full:
        inputs |= {
            "delta": randn(batch, time, heads) * 3,
            "D": randn(heads),
            "delta_bias": randn(heads),
            "delta_softplus": True,
            "initial_state": randn(batch, heads, head_dim, d_state),
        }
    return inputs


def ssd(**options):
    return lambda **inputs: ssd_scan(**inputs, **options, return_last_state=True)


def reference(reverse=False):
    """ssd_scan's arguments for the slow selective scan."""

    def scan(x, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, lengths=None, initial_state=None):
        def widen(tensor):
            return None if tensor is None else tensor.repeat_interleave(x.shape[3], -1)

        y, state = selective_scan(
            x.flatten(2), widen(delta), widen(A).unsqueeze(1).repeat(1, B.shape[-1]), B, C, widen(D), None,
            widen(delta_bias), delta_softplus, lengths, None if initial_state is None else initial_state.flatten(1, 2),
            return_last_state=True, reverse=reverse, backend="reference",
        )  # fmt: skip
        return y.reshape(x.shape), state.unflatten(1, x.shape[2:])

    return scan


@pytest.mark.parametrize("chunk_size", [1, 7, 10, 64])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("full", [False, True])
def test_equals_selective_scan_with_gradients(chunk_size, reverse, lengths, full):
    inputs = make_inputs(full=full) | {"lengths": lengths}
    expected = outcome(reference(reverse), inputs)
    assert len(expected) == 2 + (8 if full else 5)
    assert_close(outcome(ssd(reverse=reverse, chunk_size=chunk_size), inputs), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_groups_equal_selective_scan_with_gradients(groups, reverse, full):
    inputs = make_inputs(heads=6, full=full, groups=groups) | {"lengths": RAGGED}
    expected = outcome(reference(reverse), inputs)
    assert_close(outcome(ssd(reverse=reverse, chunk_size=7), inputs), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("option", ["D", "delta_bias", "delta_softplus", "initial_state"])
def test_each_option_alone_equals_selective_scan(option):
    inputs = make_inputs(full=False) | {option: make_inputs()[option]}
    assert_close(ssd()(**inputs), reference()(**inputs))


@pytest.mark.parametrize("reverse", [False, True])
def test_default_chunks_over_a_long_sequence(reverse):
    inputs = make_inputs(batch=3, time=150) | {"lengths": torch.tensor([150, 64, 65])}
    assert_close(outcome(ssd(reverse=reverse), inputs), outcome(reference(reverse), inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_equal_finite_differences(reverse):
    inputs = make_inputs(batch=2, time=5, head_dim=2, d_state=2) | {"lengths": torch.tensor([5, 3])}
    names = [name for name, value in inputs.items() if torch.is_tensor(value) and value.is_floating_point()]

    def function(*tensors):
        return ssd(reverse=reverse, chunk_size=2)(**inputs | dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, [inputs[name].requires_grad_() for name in names])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [1e30, torch.nan, torch.inf, -torch.inf])
def test_padding_changes_nothing(reverse, value):
    inputs = make_inputs() | {"lengths": RAGGED}
    spoilt = inputs | {name: with_padding(inputs[name], RAGGED, value) for name in BY_TIME}
    found = outcome(ssd(reverse=reverse, chunk_size=7), spoilt)
    assert_close(found, outcome(ssd(reverse=reverse, chunk_size=7), inputs), rtol=0, atol=0)
    for name in ("y", *(f"gradient of {name}" for name in BY_TIME)):
        assert not padding_of(found[name], RAGGED).any(), name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("border", [0, 1, 14, 16, 20])
def test_two_parts_equal_whole(reverse, lengths, border):
    inputs = make_inputs()
    y, state = ssd(reverse=reverse, chunk_size=7)(**inputs, lengths=lengths)
    carried, parts = inputs["initial_state"], {}
    for start, end in [(border, 20), (0, border)] if reverse else [(0, border), (border, 20)]:
        part = inputs | {name: inputs[name][:, start:end] for name in BY_TIME} | {"initial_state": carried}
        part["lengths"] = None if lengths is None else (lengths - start).clamp(0, end - start)
        parts[start, end], carried = ssd(reverse=reverse, chunk_size=7)(**part)
    assert_close(torch.cat([parts[0, border], parts[border, 20]], 1), y)
    assert_close(carried, state)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_step_loop_equals_forward(full, groups):
    inputs = make_inputs(heads=4, full=full, groups=groups)
    y, last_state = ssd()(**inputs)
    state, outputs = inputs.pop("initial_state", torch.zeros_like(last_state)), []
    for t in range(20):
        frame = inputs | {name: inputs[name][:, t] for name in BY_TIME}
        output, state = ssd_step(**frame, state=state)
        outputs.append(output)
    assert_close((torch.stack(outputs, 1), state), (y, last_state))


@pytest.mark.parametrize(("batch", "time"), [(0, 7), (2, 0)])
def test_nothing_to_scan(batch, time):
    inputs = make_inputs(batch=batch, time=time)
    y, state = ssd()(**inputs)
    assert y.shape == inputs["x"].shape
    assert torch.equal(state, inputs["initial_state"])


def test_returns_y_alone_unless_asked():
    inputs = make_inputs()
    assert torch.equal(ssd_scan(**inputs), ssd()(**inputs)[0])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("delta", ["all 50", "0.001 to 50"])
def test_strong_decay_in_float32_stays_finite_and_right(reverse, delta):
    inputs = make_inputs(time=100, heads=4, full=False) | {"A": -torch.tensor([16.0, 8.0, 1.0, 0.01]).double()}
    spread = torch.rand(inputs["delta"].shape, dtype=torch.float64)
    inputs["delta"] = torch.full_like(spread, 50.0) if delta == "all 50" else 50 * (2e-5**spread)
    expected = outcome(reference(reverse), inputs)
    found = outcome(ssd(reverse=reverse), {name: value.float() for name, value in inputs.items()})
    for name, value in found.items():
        assert value.isfinite().all(), name
        # A chunk's decays are differences of running sums, here up to 50 * 16 * 64, known to 4e-3 at worst in float32.
        error = (value - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 1e-3, name


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_float32_inside(autocast):
    inputs = make_inputs()
    inputs |= {name: inputs[name].bfloat16() for name in BY_TIME}
    inputs |= {name: inputs[name].float() for name in ("A", "D", "delta_bias", "initial_state")}
    wide = {name: value.float() if torch.is_tensor(value) else value for name, value in inputs.items()}

    def one_step(inputs):
        frame = {name: value[:, 0] if name in BY_TIME else value for name, value in inputs.items()}
        return ssd_step(state=frame.pop("initial_state"), **frame)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = outcome(ssd(), inputs)
        step, after_step = one_step(inputs)
    for (y, state), expected in [((found["y"], found["state"]), ssd()(**wide)), ((step, after_step), one_step(wide))]:
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, expected[0].bfloat16())
        assert torch.equal(state, expected[1])
    assert all(value.isfinite().all() for value in found.values())


def test_tiny_steps_in_bfloat16_keep_the_state():
    time, delta = 2000, torch.tensor(1e-3, dtype=torch.bfloat16)
    ones = torch.ones(1, time, 1, dtype=torch.bfloat16)
    y, state = ssd()(x=ones.unsqueeze(-1), delta=ones * delta, A=-torch.ones(1), B=ones, C=ones)
    settled = 1 - torch.exp(-time * delta.double())
    assert_close(state.double().squeeze(), settled, rtol=2e-3, atol=0)
    assert_close(y[0, -1, 0, 0].double(), settled, rtol=5e-3, atol=0)


WRONG_SHAPES = [
    ("x", (2, 5, 2)),
    ("delta", (2, 5, 1)),
    ("delta", (2, 4, 2)),
    ("A", (1,)),
    ("A", (2, 4)),
    ("B", (2, 4)),
    ("B", (1, 5, 4)),
    ("B", (2, 5, 3, 4)),
    ("B", (2, 5, 0, 4)),
    ("B", (2, 4, 1, 4)),
    ("C", (2, 5, 1, 4)),
    ("C", (2, 5, 3)),
    ("C", (2, 4, 4)),
    ("D", (1,)),
    ("D", (2, 3)),
    ("delta_bias", (1,)),
    ("initial_state", (1, 2, 3, 4)),
    ("initial_state", (2, 2, 4, 3)),
]


@pytest.mark.parametrize(("name", "shape"), WRONG_SHAPES)
def test_wrong_shape(name, shape):
    with pytest.raises(ValueError, match=rf"^{name} has shape {re.escape(str(shape))}, expected \("):
        ssd_scan(**make_inputs(batch=2, time=5) | {name: randn(*shape)})


@pytest.mark.parametrize("lengths", WRONG_LENGTHS.values(), ids=WRONG_LENGTHS)
def test_wrong_lengths(lengths):
    with pytest.raises(ValueError, match="lengths"):
        ssd_scan(**make_inputs(batch=2, time=5), lengths=lengths)


def test_wrong_chunk_size():
    with pytest.raises(ValueError, match=r"chunk_size \(0\)"):
        ssd_scan(**make_inputs(), chunk_size=0)


def test_step_wrong_shape():
    inputs = {name: value[:, 0] if name in BY_TIME else value for name, value in make_inputs(batch=2).items()}
    state = inputs.pop("initial_state")
    with pytest.raises(ValueError, match="B has shape"):
        ssd_step(**inputs | {"B": randn(1, 4)}, state=state)
