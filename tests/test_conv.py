"""The causal convolution against F.conv1d, one sequence after the other."""

import re

import pytest
import torch
import torch.nn.functional as F
from ssm_cases import WRONG_LENGTHS, outcome, padding_of, randn, with_padding
from torch.testing import assert_close

from samba_asr.ssm.conv import causal_conv1d, causal_conv1d_step
from samba_asr.ssm.padding import mask_padding

RAGGED = torch.tensor([9, 0, 1, 2, 6])


def make_inputs(batch=5, time=9, channels=3, width=4):
    return {
        "x": randn(batch, time, channels),
        "weight": randn(channels, 1, width),
        "bias": randn(channels),
        "initial_state": randn(batch, width - 1, channels),
    }


def conv(reverse=False):
    """The function with y's padding, which it leaves undefined, set to 0."""

    def function(**inputs):
        y, state = causal_conv1d(**inputs, reverse=reverse)
        return mask_padding(y, inputs.get("lengths")), state

    return function


def reference(reverse=False):
    def function(x, weight, bias=None, lengths=None, initial_state=None):
        width, outputs, states = weight.shape[2], [], []
        for row, frames in enumerate(x):
            length = x.shape[1] if lengths is None else int(lengths[row])
            before = x.new_zeros(width - 1, x.shape[2]) if initial_state is None else initial_state[row]
            seen = torch.cat([before.flip(0), frames[:length].flip(0)] if reverse else [before, frames[:length]])
            y = F.silu(F.conv1d(seen.T.unsqueeze(0), weight, bias, groups=len(weight)))[0].T if length else seen[:0]
            state = seen[len(seen) - width + 1 :]
            outputs.append(F.pad(y.flip(0) if reverse else y, (0, 0, 0, x.shape[1] - length)))
            states.append(state.flip(0) if reverse else state)
        return torch.stack(outputs), torch.stack(states)

    return function


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("left_out", ["", "bias", "initial_state"])
def test_equals_conv1d_with_gradients(reverse, lengths, width, left_out):
    inputs = make_inputs(width=width) | {"lengths": lengths}
    inputs.pop(left_out, None)
    assert_close(outcome(conv(reverse), inputs), outcome(reference(reverse), inputs))


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_equal_finite_differences(reverse):
    inputs = make_inputs(batch=2, time=3)
    tensors = [value.requires_grad_() for value in inputs.values()]

    def function(*tensors):
        return conv(reverse)(**dict(zip(inputs, tensors, strict=True)), lengths=torch.tensor([3, 1]))

    assert torch.autograd.gradcheck(function, tensors)


def test_reverse_is_forward_on_flipped_sequences():
    inputs = make_inputs()
    flipped = inputs | {name: inputs[name].flip(1) for name in ("x", "initial_state")}
    y, state = conv()(**flipped)
    assert_close(conv(reverse=True)(**inputs), (y.flip(1), state.flip(1)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [1e30, torch.nan, torch.inf])
def test_padding_changes_nothing(reverse, value):
    inputs = make_inputs() | {"lengths": RAGGED}
    found = outcome(conv(reverse), inputs | {"x": with_padding(inputs["x"], RAGGED, value)})
    assert_close(found, outcome(conv(reverse), inputs), rtol=0, atol=0)
    assert not padding_of(found["gradient of x"], RAGGED).any()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("border", [0, 1, 4, 8, 9])
def test_two_parts_equal_whole(reverse, lengths, border):
    inputs = make_inputs()
    y, state = conv(reverse)(**inputs, lengths=lengths)
    carried, parts = inputs["initial_state"], {}
    for start, end in [(border, 9), (0, border)] if reverse else [(0, border), (border, 9)]:
        part = inputs | {"x": inputs["x"][:, start:end], "initial_state": carried}
        part["lengths"] = None if lengths is None else (lengths - start).clamp(0, end - start)
        parts[start, end], carried = conv(reverse)(**part)
    assert_close(torch.cat([parts[0, border], parts[border, 9]], 1), y)
    assert_close(carried, state)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("with_bias", [False, True])
def test_step_loop_equals_forward(width, with_bias):
    inputs = make_inputs(width=width)
    bias, state, outputs = inputs["bias"] if with_bias else None, inputs["initial_state"], []
    for frame in inputs["x"].unbind(1):
        y, state = causal_conv1d_step(frame, inputs["weight"], bias, state)
        outputs.append(y)
    assert_close((torch.stack(outputs, 1), state), causal_conv1d(**inputs | {"bias": bias}))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_frames_beside_float32_weights(autocast):
    inputs = {name: value.float() for name, value in make_inputs().items()} | {"lengths": RAGGED}
    inputs["x"] = inputs["x"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, state = conv()(**inputs)
        step, _ = causal_conv1d_step(inputs["x"][:, 0], inputs["weight"], inputs["bias"], inputs["initial_state"])
    assert y.dtype == state.dtype == step.dtype == torch.bfloat16
    expected, expected_state = conv()(**inputs | {"x": inputs["x"].float()})
    assert_close((y.float(), state.float()), (expected, expected_state), rtol=2e-2, atol=5e-2)
    assert_close(step[0].float(), expected[0, 0], rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize(("batch", "time"), [(0, 4), (2, 0)])
@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_to_convolve(batch, time, reverse):
    inputs = make_inputs(batch=batch, time=time)
    y, state = causal_conv1d(**inputs, reverse=reverse)
    assert y.shape == (batch, time, 3)
    assert torch.equal(state, inputs["initial_state"])


WRONG_SHAPES = [
    ("x", (2, 5)),
    ("x", (2, 5, 3, 1)),
    ("weight", (3, 4)),
    ("weight", (4, 1, 4)),
    ("weight", (3, 3, 4)),
    ("bias", (1,)),
    ("initial_state", (1, 3, 3)),
    ("initial_state", (2, 4, 3)),
]


@pytest.mark.parametrize(("name", "shape"), WRONG_SHAPES)
def test_wrong_shape(name, shape):
    with pytest.raises(ValueError, match=rf"^{name} has shape {re.escape(str(shape))}, expected \("):
        causal_conv1d(**make_inputs(batch=2, time=5) | {name: randn(*shape)})


@pytest.mark.parametrize("lengths", WRONG_LENGTHS.values(), ids=WRONG_LENGTHS)
def test_wrong_lengths(lengths):
    with pytest.raises(ValueError, match="lengths"):
        causal_conv1d(**make_inputs(batch=2, time=5), lengths=lengths)


def test_step_wrong_shape():
    inputs = make_inputs(batch=2)
    with pytest.raises(ValueError, match="initial_state has shape"):
        causal_conv1d_step(inputs["x"][:, 0], inputs["weight"], inputs["bias"], randn(1, 3, 3))
