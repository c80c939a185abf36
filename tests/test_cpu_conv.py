"""The causal convolution's native kernels against the torch backend in float64."""

import pytest
import torch
from ssm_cases import on_threads, outcome, padding_of, with_padding
from test_conv import make_inputs
from test_cpu_scan import assert_near, single
from torch.testing import assert_close

from samba_asr.ssm import cpu_conv, native
from samba_asr.ssm.conv import causal_conv1d
from samba_asr.ssm.padding import mask_padding

pytestmark = pytest.mark.skipif(native.load_kernels() is None, reason="no C++ compiler")


def conv(reverse=False, backend="auto"):
    def function(**inputs):
        y, state = causal_conv1d(**inputs, reverse=reverse, backend=backend)
        return mask_padding(y, inputs.get("lengths")), state

    return function


@pytest.mark.parametrize("channels", [3, 16, 40])
@pytest.mark.parametrize("width", [1, 2, 4, 8, 9])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("left_out", ["", "bias", "initial_state"])
def test_values_and_gradients(channels, width, reverse, ragged, left_out):
    inputs = make_inputs(channels=channels, width=width)
    inputs["lengths"] = torch.tensor([9, 0, 1, 2, 6]) if ragged else None
    inputs.pop(left_out, None)
    expected = outcome(conv(reverse, "torch"), inputs)
    assert_near(outcome(conv(reverse), single(inputs)), expected)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_instruction_set(level, monkeypatch):
    if level > cpu_conv.level():
        pytest.skip("this CPU lacks it")
    inputs = make_inputs(channels=40)
    expected = outcome(conv(backend="torch"), inputs)
    monkeypatch.setattr(cpu_conv, "level", lambda: level)
    assert_near(outcome(conv(), single(inputs)), expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [1e30, torch.nan])
def test_padding_changes_nothing(reverse, value):
    lengths = torch.tensor([9, 0, 1, 2, 6])
    inputs = single(make_inputs(channels=20)) | {"lengths": lengths}
    spoilt = inputs | {"x": with_padding(inputs["x"], lengths, value)}
    found = outcome(conv(reverse), spoilt)
    assert_close(found, outcome(conv(reverse), inputs), rtol=0, atol=0)
    assert not padding_of(found["gradient of x"], lengths).any()
    assert not padding_of(causal_conv1d(**spoilt, reverse=reverse)[0], lengths).any()


def test_bfloat16_is_float32_inside():
    inputs = single(make_inputs(time=40, channels=40))
    narrow = inputs | {"x": inputs["x"].bfloat16()}
    found, expected = outcome(conv(), narrow), outcome(conv(), narrow | {"x": narrow["x"].float()})
    assert found["y"].dtype == found["state"].dtype == found["gradient of x"].dtype == torch.bfloat16
    for name in ("y", "state"):
        assert torch.equal(found[name], expected[name].bfloat16())
    for name in ("gradient of weight", "gradient of bias"):
        assert (found[name] - expected[name]).abs().max() < 0.02 * expected[name].abs().max()


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(cpu_conv, "threads_for", lambda work, least: torch.get_num_threads())
    inputs = single(make_inputs(batch=3, channels=40))
    results = on_threads(lambda: outcome(conv(), inputs))
    assert_close(results[1:], results[:1] * 2, rtol=0, atol=0)


def test_float64_goes_to_torch(monkeypatch):
    calls = []
    monkeypatch.setattr("samba_asr.ssm.conv.cpu_conv", lambda *args: calls.append(1) or cpu_conv.cpu_conv(*args))
    causal_conv1d(**make_inputs())
    assert not calls
    causal_conv1d(**single(make_inputs()))
    assert calls
