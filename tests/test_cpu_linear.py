"""The linear layer for a few rows against float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from samba_asr.ssm import cpu_linear, native
from samba_asr.ssm.cpu_linear import MOST_ROWS, Linear

needs_kernels = pytest.mark.skipif(native.load_kernels() is None, reason="no C++ compiler")


@pytest.fixture
def calls(monkeypatch):
    """Calls that reached the kernels."""
    made = []
    pointer = cpu_linear.pointer
    monkeypatch.setattr(cpu_linear, "pointer", lambda tensor: made.append(1) or pointer(tensor))
    return made


def exact(layer, x):
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.weight.double(), bias)


@needs_kernels
@pytest.mark.parametrize("rows", range(1, MOST_ROWS + 1))
@pytest.mark.parametrize(("inputs", "outputs"), [(384, 902), (7, 1), (64, 32), (33, 47), (1, 65)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_values(rows, inputs, outputs, bias, calls):
    layer, x = Linear(inputs, outputs, bias=bias).eval(), torch.randn(rows, inputs)
    assert_close(layer(x).double(), exact(layer, x), rtol=1e-5, atol=1e-5)
    assert calls


@needs_kernels
@pytest.mark.parametrize("level", [0, 1, 2])
@torch.no_grad()
def test_every_instruction_set(level, monkeypatch):
    if level > cpu_linear.level():
        pytest.skip("this CPU lacks it")
    monkeypatch.setattr(cpu_linear, "level", lambda: level)
    layer, x = Linear(100, 70).eval(), torch.randn(11, 100)
    assert_close(layer(x).double(), exact(layer, x), rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("level", [0, 1, 2])
@torch.no_grad()
def test_weights_that_float16_holds(level, monkeypatch):
    """All that are finite: normal, subnormal, zeros of both signs. The result is float32's, to the last bit."""
    if level > cpu_linear.level():
        pytest.skip("this CPU lacks it")
    monkeypatch.setattr(cpu_linear, "level", lambda: level)
    assert cpu_linear._reads_float16() == (level > 0)
    monkeypatch.setattr(cpu_linear, "_reads_float16", lambda: True)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    layer, x = Linear(512, 124, bias=False).eval(), torch.randn(5, 512)
    layer.weight.copy_(every[every.isfinite()].float().view(124, 512))
    found = layer(x)
    packed = layer._packed
    assert packed is not None and packed.columns.dtype == torch.float16
    assert_close(found.double(), exact(layer, x), rtol=1e-5, atol=1.0)  # weights go to 65,504
    monkeypatch.setattr(cpu_linear, "_reads_float16", lambda: False)
    layer.train().eval()  # packed anew
    assert torch.equal(layer(x), found)


@needs_kernels
@pytest.mark.parametrize("value", [1e-8, 0.1, 1e6, float("inf"), float("nan")])
@torch.no_grad()
def test_weights_that_float16_does_not_hold(value):
    layer, x = Linear(64, 40).eval(), torch.randn(3, 64)
    layer.weight.copy_(layer.weight.half())
    layer.weight[39, 63] = value
    assert_close(layer(x).double(), exact(layer, x), rtol=1e-5, atol=1e-5, equal_nan=True)
    assert layer._packed is not None and layer._packed.columns.dtype == torch.float32


@needs_kernels
@torch.no_grad()
def test_a_row_is_the_same_in_any_company(calls):
    layer, x = Linear(384, 100).eval(), torch.randn(MOST_ROWS, 384)
    whole = layer(x)
    for rows in range(1, MOST_ROWS):
        assert torch.equal(layer(x[:rows]), whole[:rows])
    assert torch.equal(layer(x[:, None].expand(-1, 2, -1)[:, 1]), whole)  # rows that do not lie side by side


@needs_kernels
@torch.no_grad()
def test_rows_of_several_sequences_are_rows(calls):
    layer, x = Linear(33, 47).eval(), torch.randn(2, 3, 33)
    assert torch.equal(layer(x), layer(x.flatten(0, 1)).view(2, 3, 47))
    assert torch.equal(layer(x[0, 0]), layer(x[0, :1])[0])
    assert len(calls) == 4 * 5  # five pointers a call


@needs_kernels
def test_changed_weights_are_packed_anew():
    layer, x = Linear(20, 40).eval(), torch.randn(3, 20)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def check():
        with torch.no_grad():
            assert_close(layer(x).double(), exact(layer, x), rtol=1e-5, atol=1e-5)

    check()
    layer.train()
    layer(x).sum().backward()
    optimiser.step()
    check()
    layer.eval()
    check()
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
    check()
    layer.weight.data = torch.randn(40, 20)
    check()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.zero_()
        assert_close(other(x), other.bias.expand(3, -1))
    check()
    for _ in range(20):  # parameters that come and go may lie where others lay
        given = {"weight": torch.randn(40, 20), "bias": torch.zeros(40)}
        with torch.no_grad():
            assert_close(torch.func.functional_call(layer, given, (x,)), x @ given["weight"].mT, rtol=1e-4, atol=1e-4)


def test_other_inputs_go_to_torch(calls):
    layer = Linear(8, 5)
    with torch.no_grad():
        layer(torch.randn(3, 8))
    layer.eval()
    layer(torch.randn(3, 8)).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert layer(torch.randn(MOST_ROWS + 1, 8)).shape == (MOST_ROWS + 1, 5)
        assert layer(torch.randn(2, MOST_ROWS, 8)).shape == (2, MOST_ROWS, 5)
        assert layer(torch.empty(2, 0, 8)).shape == (2, 0, 5)
        assert layer(torch.empty(0, 8)).shape == (0, 5)
        assert layer.double()(torch.randn(3, 8).double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(torch.randn(3, 8)).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            layer(torch.randn(3, 9))
    assert not calls


@torch.no_grad()
def test_without_kernels(monkeypatch):
    monkeypatch.setattr(cpu_linear, "load_kernels", lambda: None)
    layer, x = Linear(8, 5).eval(), torch.randn(3, 8)
    assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=0)


@needs_kernels
def test_inference_mode():
    with torch.inference_mode():
        born, x = Linear(8, 5).eval(), torch.randn(3, 8)
        assert_close(born(x).double(), exact(born, x), rtol=1e-5, atol=1e-5)
        born.weight.zero_()
        assert_close(born(x), born.bias.expand(3, -1))
    layer = Linear(8, 5).eval()
    with torch.inference_mode():
        assert_close(layer(x).double(), exact(layer, x), rtol=1e-5, atol=1e-5)
