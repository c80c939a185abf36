"""Mamba-2's scan by native kernels against the torch backend in float64."""

import pytest
import torch
from ssm_cases import on_threads, outcome, padding_of, with_padding
from test_cpu_scan import assert_near, single
from test_ssd import BY_TIME, make_inputs, ssd
from torch.testing import assert_close

from samba_asr.ssm import cpu_ssd, native
from samba_asr.ssm.ssd import ssd_scan

pytestmark = pytest.mark.skipif(native.load_kernels() is None, reason="no C++ compiler")

SHAPES = [  # batch, time, heads, head_dim, d_state
    (2, 70, 3, 16, 16),  # two chunks and a bit
    (4, 33, 2, 64, 64),
    (1, 96, 6, 64, 64),  # whole chunks
    (3, 5, 2, 32, 80),
    (2, 40, 2, 80, 16),
]
BOUND = 1e-4
"""The torch backend in float32 is as far from float64: a gradient of A is a sum of large numbers that cancel."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_values_and_gradients(shape, full, reverse, ragged):
    inputs = make_inputs(*shape, full=full)
    inputs["lengths"] = torch.tensor([shape[1], 1, 0, shape[1] - 2])[: shape[0]] if ragged else None
    expected = outcome(ssd(reverse=reverse, backend="torch"), inputs)
    plain = outcome(ssd(reverse=reverse, backend="torch"), single(inputs))
    assert_near(outcome(ssd(reverse=reverse), single(inputs)), expected, BOUND, plain)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_groups(groups, reverse, batch):
    inputs = make_inputs(batch, 70, 6, 16, 32, groups=groups) | {"lengths": torch.tensor([70, 0, 33])[:batch]}
    expected = outcome(ssd(reverse=reverse, backend="torch"), inputs)
    plain = outcome(ssd(reverse=reverse, backend="torch"), single(inputs))
    assert_near(outcome(ssd(reverse=reverse), single(inputs)), expected, BOUND, plain)


@pytest.mark.parametrize("option", ["D", "delta_bias", "delta_softplus", "initial_state"])
def test_each_option_alone(option):
    given = make_inputs(2, 40, 2, 16, 16)[option]
    given = given.abs() if option == "delta_bias" else given  # negative steps explode
    inputs = make_inputs(2, 40, 2, 16, 16, full=False) | {option: given}
    assert_near(outcome(ssd(), single(inputs)), outcome(ssd(backend="torch"), inputs), BOUND)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_instruction_set(level, monkeypatch):
    if level > cpu_ssd.level():
        pytest.skip("this CPU lacks it")
    inputs = make_inputs(2, 70, 3, 64, 16) | {"lengths": torch.tensor([70, 31])}
    expected = outcome(ssd(backend="torch"), inputs)
    monkeypatch.setattr(cpu_ssd, "level", lambda: level)
    assert_near(outcome(ssd(), single(inputs)), expected, BOUND)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("groups", [None, 3])
def test_threads_change_nothing(batch, groups, monkeypatch):
    """Of six heads, which two and five threads divide within a group and between groups."""
    monkeypatch.setattr(cpu_ssd, "threads_for", lambda work, least: torch.get_num_threads())
    inputs = single(make_inputs(batch, 70, 6, 16, 16, groups=groups))
    results = on_threads(lambda: outcome(ssd(), inputs))
    for result in results[1:]:
        assert_near(result, results[0])
        assert torch.equal(result["y"], results[0]["y"])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [1e30, torch.nan, torch.inf])
def test_padding_changes_nothing(reverse, value):
    lengths = torch.tensor([40, 0, 1, 33])
    inputs = single(make_inputs(4, 40, 2, 16, 16)) | {"lengths": lengths}
    spoilt = inputs | {name: with_padding(inputs[name], lengths, value) for name in BY_TIME}
    found = outcome(ssd(reverse=reverse), spoilt)
    assert_close(found, outcome(ssd(reverse=reverse), inputs), rtol=0, atol=0)
    for name in ("y", *(f"gradient of {name}" for name in BY_TIME)):
        assert not padding_of(found[name], lengths).any(), name


def test_columns_of_a_wider_tensor_are_read_where_they_stand():
    inputs = single(make_inputs(2, 40, 2, 16, 32))
    wide = torch.cat([inputs["x"].flatten(2), inputs["B"], inputs["C"]], -1).requires_grad_()
    x, B, C = wide.split([32, 32, 32], -1)
    views = {"x": x.unflatten(-1, (2, 16)), "B": B, "C": C}
    y, _ = ssd()(**inputs | views)
    assert_close(y, ssd()(**inputs)[0], rtol=0, atol=0)
    y.sum().backward()
    found = outcome_of_sum(inputs)
    assert_close(wide.grad, torch.cat([found["x"].flatten(2), found["B"], found["C"]], -1), rtol=0, atol=0)


def outcome_of_sum(inputs):
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("x", "B", "C")}
    ssd()(**inputs | leaves)[0].sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def test_bfloat16_is_float32_inside():
    inputs = single(make_inputs(2, 70, 2, 16, 16))
    narrow = inputs | {name: inputs[name].bfloat16() for name in BY_TIME}
    wide = narrow | {name: narrow[name].float() for name in BY_TIME}
    found, expected = outcome(ssd(), narrow), outcome(ssd(), wide)
    assert found["y"].dtype == torch.bfloat16
    assert torch.equal(found["y"], expected["y"].bfloat16())
    assert torch.equal(found["state"], expected["state"])
    for name in BY_TIME:
        gradient = found[f"gradient of {name}"]
        assert gradient.dtype == torch.bfloat16
        exact = expected[f"gradient of {name}"]
        assert (gradient.float() - exact).abs().max() < 0.03 * exact.abs().max()


def test_sizes_that_no_vector_fills_go_to_torch(monkeypatch):
    calls = []
    monkeypatch.setattr("samba_asr.ssm.ssd.cpu_ssd", lambda *args: calls.append(1) or cpu_ssd.cpu_ssd(*args))
    for head_dim, d_state, expected in ((16, 16, 1), (12, 16, 0), (16, 12, 0)):
        calls.clear()
        ssd_scan(**single(make_inputs(2, 5, 2, head_dim, d_state)))
        assert len(calls) == expected
    ssd_scan(**make_inputs(2, 5, 2, 16, 16))
    assert len(calls) == 0


@pytest.mark.parametrize(("batch", "time"), [(0, 7), (2, 0)])
def test_nothing_to_scan(batch, time):
    inputs = single(make_inputs(batch, time, 2, 16, 16))
    y, state = ssd()(**inputs)
    assert y.shape == (batch, time, 2, 16)
    assert torch.equal(state, inputs["initial_state"])


@pytest.mark.parametrize("name", BY_TIME)
def test_a_single_frame_with_odd_strides(name):
    inputs = single(make_inputs(4, 1, 2, 16, 16))
    turned = inputs[name].squeeze(1).unsqueeze(0).transpose(0, 1)  # contiguous, and yet its first two strides are odd
    assert_close(ssd()(**inputs | {name: turned}), ssd()(**inputs), rtol=0, atol=0)


def test_a_row_that_is_repeated():
    inputs = single(make_inputs(2, 40, 2, 16, 16))
    repeated = inputs["B"][:1, :1].expand(2, 40, 16)
    assert_close(ssd()(**inputs | {"B": repeated}), ssd()(**inputs | {"B": repeated.clone()}), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["x", "delta", "A", "B", "C", "delta_bias", "initial_state"])
def test_nan_stays_nan(name):
    inputs = single(make_inputs(2, 40, 2, 16, 16))
    inputs[name] = inputs[name].clone()
    inputs[name].flatten()[1] = torch.nan
    found, expected = outcome(ssd(), inputs), outcome(ssd(backend="torch"), inputs)
    for key, value in expected.items():
        assert found[key].isnan().any() == value.isnan().any(), key
    assert any(value.isnan().any() for value in found.values())


@torch.no_grad()
def test_another_default_type_changes_nothing():
    inputs = single(make_inputs(2, 5, 2, 16, 16))
    expected = ssd()(**inputs)
    torch.set_default_dtype(torch.float64)
    try:
        found = ssd()(**inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(found, expected, rtol=0, atol=0)
