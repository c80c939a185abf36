"""The selective scan's Triton kernels in Triton's interpreter, against the reference backend in float64.

test_triton_scan.py runs this file in a process of its own, where TRITON_INTERPRET=1 stands before triton is imported.
A frame takes the interpreter some 30 ms a block of channels and sequence, so everything here is small.
"""

import pytest
import torch
from ssm_cases import outcome, padding_of, with_padding
from test_cpu_scan import assert_near, single
from test_scan import BY_TIME, make_inputs, scan
from torch.testing import assert_close

from samba_asr.ssm import triton_scan
from samba_asr.ssm.scan import selective_scan

BOUND = 1e-5


@pytest.fixture(autouse=True)
def interpreter():
    assert triton_scan.interpreted()


@pytest.fixture
def cut(monkeypatch):
    """Cut time into as many segments as there are chunks."""
    monkeypatch.setattr(triton_scan, "WARPS_PER_CORE", 10**6)


CASES = {  # batch, time, channels, d_state, groups, everything that may be left out, lengths, reverse
    "three chunks, two blocks": (3, 35, 40, 16, None, True, [33, 1, 0], False),
    "backwards, two groups": (3, 21, 36, 16, 2, True, [1, 20, 0], True),
    "odd number of states, bare": (1, 19, 7, 5, 1, False, None, False),
    "odd number of states, backwards": (2, 18, 8, 5, 2, True, [17, 2], True),
    "many states": (1, 18, 6, 64, None, True, None, True),
    "one state": (2, 17, 35, 1, None, True, [17, 3], False),
    "one frame": (1, 1, 3, 2, None, True, None, False),
    "nothing but padding": (1, 3, 3, 2, None, True, [0], True),
}


def case(batch, time, channels, d_state, groups, full, lengths, reverse):
    inputs = make_inputs(batch, time, channels, d_state, groups, full)
    return inputs | {"lengths": None if lengths is None else torch.tensor(lengths)}, reverse


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_in_segments(name, cut):
    inputs, reverse = case(*CASES[name])
    expected = outcome(scan("reference", reverse=reverse), inputs)
    assert_near(outcome(scan("triton", reverse=reverse), single(inputs)), expected, BOUND)


@pytest.mark.parametrize("name", ["backwards, two groups", "odd number of states, bare"])
def test_values_and_gradients_in_one_pass(name):
    inputs, reverse = case(*CASES[name])
    expected = outcome(scan("reference", reverse=reverse), inputs)
    assert_near(outcome(scan("triton", reverse=reverse), single(inputs)), expected, BOUND)


@pytest.mark.parametrize("option", ["D", "z", "delta_bias", "delta_softplus", "initial_state"])
def test_each_option_alone(option):
    given = make_inputs(1, 5, 3, 2)[option]
    given = given.abs() if option == "delta_bias" else given  # negative steps explode
    inputs = make_inputs(1, 5, 3, 2, full=False) | {option: given}
    assert_near(outcome(scan("triton"), single(inputs)), outcome(scan("reference"), inputs), BOUND)


ALL_SHAPES = {(kernel, shape) for kernel in ("scan_kernel", "gradient_kernel") for d_state in (1, 4, 16)
              for shape in triton_scan.shapes(kernel, d_state, 10**6)}  # fmt: skip


@pytest.mark.parametrize("shape", sorted({(s.NT * s.NL, s) for _, s in ALL_SHAPES}), ids=str)
def test_every_shape(shape, monkeypatch):
    d_state, shape = shape
    monkeypatch.setattr(triton_scan, "shapes", lambda *_: [shape])
    triton_scan._tuned.cache_clear()
    inputs = make_inputs(1, 3, 9, d_state)
    found = outcome(scan("triton"), single(inputs))
    triton_scan._tuned.cache_clear()
    assert_near(found, outcome(scan("reference"), inputs), BOUND)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e4])
def test_padding_changes_nothing(reverse, value, cut):
    lengths = torch.tensor([0, 1, 18])
    inputs = single(make_inputs(3, 21, 2, 2)) | {"lengths": lengths}
    spoilt = inputs | {name: with_padding(inputs[name], lengths, value) for name in BY_TIME}
    found = outcome(scan("triton", reverse=reverse), spoilt)
    wide = inputs | {name: inputs[name].double() for name in inputs if name not in ("lengths", "delta_softplus")}
    expected = outcome(scan("reference", reverse=reverse), wide)
    assert_near(found, expected, BOUND)
    for name in ("y", *(f"gradient of {name}" for name in BY_TIME)):
        assert not padding_of(found[name], lengths).any(), name


@pytest.mark.parametrize(("kind", "bound"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_half_precision_is_float32_inside(kind, bound):
    inputs = make_inputs(2, 9, 3, 4) | {"lengths": torch.tensor([9, 4])}
    given = single(inputs) | {name: inputs[name].to(kind) for name in BY_TIME}
    wide = inputs | {name: inputs[name].to(kind).double() for name in BY_TIME}
    found, expected = outcome(scan("triton"), given), outcome(scan("reference"), wide)
    assert found["y"].dtype == found["gradient of B"].dtype == kind
    assert_near({"state": found["state"]}, {"state": expected["state"]}, BOUND)
    assert_near(found, expected, bound)


def test_steps_from_very_small_to_very_large():
    raw = torch.tensor([-60, -25, -12, -1, 0, 1, 19.9, 20.1, 60, 1e3], dtype=torch.float64)[None, :, None]
    inputs = make_inputs(1, 10, 2, 3) | {"delta": raw.expand(1, 10, 2), "delta_bias": torch.zeros(2).double()}
    found = outcome(scan("triton"), single(inputs))
    assert_near(found, outcome(scan("reference"), inputs), BOUND)
    # The smallest steps are not lost beside the others.
    for t in range(4):
        frame = inputs | {name: inputs[name][:, t : t + 1] for name in BY_TIME}
        frame["initial_state"] = torch.zeros(1, 2, 3).double()
        assert_near(outcome(scan("triton"), single(frame)), outcome(scan("reference"), frame), BOUND)


def test_tiny_steps_in_bfloat16_keep_the_state(cut):
    ones = torch.ones(1, 50, 1, dtype=torch.bfloat16)
    _, state = scan("triton")(u=ones, delta=ones * 1e-3, A=-torch.ones(1, 1), B=ones, C=ones)
    assert_close(state.double().squeeze(), 1 - torch.exp(-50 * (ones[0, 0, 0] * 1e-3).double()), rtol=2e-3, atol=0)


def test_views_that_are_not_contiguous():
    inputs = single(make_inputs(2, 5, 3, 2))
    turned = {name: inputs[name].transpose(0, 1).contiguous().transpose(0, 1) for name in BY_TIME}
    turned["z"] = torch.cat([inputs["z"], inputs["z"]], 2)[..., 3:]
    turned["u"] = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(outcome(scan("triton"), inputs | turned), outcome(scan("triton"), inputs), rtol=0, atol=0)


def test_long_offsets_change_nothing(monkeypatch):
    inputs = single(make_inputs(1, 5, 3, 2))
    expected = outcome(scan("triton"), inputs)
    monkeypatch.setattr(triton_scan, "INT32", 1)
    assert_close(outcome(scan("triton"), inputs), expected, rtol=0, atol=0)


def test_nothing_is_kept_where_no_gradient_is_wanted(monkeypatch):
    wanted = []
    apply = triton_scan._TritonScan.apply
    monkeypatch.setattr(triton_scan._TritonScan, "apply", lambda *args: wanted.append(args[-1]) or apply(*args))
    inputs = single(make_inputs(1, 2, 3, 2))
    leaf = inputs | {"D": torch.nn.Parameter(inputs["D"])}
    scan("triton")(**leaf)
    with torch.no_grad():
        scan("triton")(**leaf)
    assert wanted == [True, False]


@pytest.mark.parametrize(("batch", "time"), [(0, 7), (2, 0)])
def test_nothing_to_scan(batch, time):
    inputs = single(make_inputs(batch, time))
    y, state = scan("triton")(**inputs)
    assert y.shape == (batch, time, 4)
    assert torch.equal(state, inputs["initial_state"])
    u = inputs["u"].requires_grad_()
    selective_scan(**inputs, backend="triton").sum().backward()
    assert u.grad.shape == u.shape


def test_auto_leaves_the_cpu_to_others():
    inputs = single(make_inputs(1, 2, 3, 2))
    assert not triton_scan.preferred(inputs["u"], 2, selective_scan)


def test_a_trial_finds_the_kernels_right():
    """What ``auto`` asks before it first takes them on a GPU."""
    assert triton_scan._trial_error(torch.device("cpu"), 5, 6, selective_scan) <= 1e-5
