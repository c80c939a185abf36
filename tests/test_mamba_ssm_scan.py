"""The ``mamba_ssm`` backend around a stand-in for its kernel, which this machine need not have."""

import sys
from types import ModuleType

import pytest
import torch
from ssm_cases import outcome, with_padding
from test_scan import BY_TIME, make_inputs
from torch.testing import assert_close

from samba_asr.ssm import mamba_ssm_scan, scan
from samba_asr.ssm.scan import selective_scan


def kernel(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """What mamba_ssm promises of selective_scan_fn: u, delta, z (batch, channels, time), B, C (batch, groups, state,
    time), all of u's type, the others float32; no gradient of the last state."""
    assert all(tensor.dtype == u.dtype for tensor in (delta, B, C, *([] if z is None else [z])))
    assert all(tensor is None or tensor.dtype == torch.float32 for tensor in (A, D, delta_bias))
    u, delta, z = (None if tensor is None else tensor.transpose(1, 2) for tensor in (u, delta, z))
    B, C = (tensor.permute(0, 3, 1, 2) for tensor in (B, C))
    y, last = selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True, backend="reference"
    )
    return (y.transpose(1, 2), last.detach()) if return_last_state else y.transpose(1, 2)


@pytest.fixture
def stand_in(monkeypatch):
    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = kernel
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def single(inputs):
    return {name: value.float() if torch.is_tensor(value) else value for name, value in inputs.items()}


def both(inputs, lengths, reverse):
    """The reference's y and last state and gradients of y, and this backend's."""
    given = {name: value for name, value in inputs.items() if name != "initial_state"}

    def reference(**leaves):
        y, last = selective_scan(
            **leaves, lengths=lengths, reverse=reverse, return_last_state=True, backend="reference"
        )
        return y, last.detach() + 0 * y.sum()

    def wrapped(delta_softplus=False, D=None, z=None, delta_bias=None, **leaves):
        B, C = (leaves.pop(name) for name in "BC")
        B, C = (tensor if tensor.dim() == 4 else tensor.unsqueeze(2) for tensor in (B, C))
        y, last = mamba_ssm_scan.mamba_ssm_scan(
            **leaves, B=B, C=C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus, lengths=lengths,
            reverse=reverse,
        )  # fmt: skip
        return y, last + 0 * y.sum()

    return outcome(wrapped, given), outcome(reference, given)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, torch.tensor([7, 0, 1, 5])])
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("left_out", [(), ("delta_softplus",), ("D", "z", "delta_bias")])
def test_equals_the_reference_with_gradients(stand_in, reverse, lengths, groups, left_out):
    inputs = {name: value for name, value in single(make_inputs(groups=groups)).items() if name not in left_out}
    if "delta_softplus" in left_out:
        inputs["delta"] = inputs["delta"].exp()
    found, expected = both(inputs, lengths, reverse)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("softplus", [True, False])
def test_padding_changes_nothing(stand_in, softplus):
    lengths = torch.tensor([7, 0, 1, 5])
    inputs = single(make_inputs()) | {"delta_softplus": softplus}
    spoilt = inputs | {name: with_padding(inputs[name], lengths, torch.nan) for name in BY_TIME}
    assert_close(both(spoilt, lengths, True)[0], both(inputs, lengths, True)[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel_gets_one_type(stand_in, dtype):
    inputs = single(make_inputs()) | {"delta_bias": torch.rand(4), "delta_softplus": False}
    del inputs["initial_state"]
    inputs["delta"] = inputs["delta"].exp()
    inputs |= {name: inputs[name].to(dtype) for name in ("u", "z")}
    lengths = torch.tensor([7, 0, 1, 5])
    inputs["B"], inputs["C"] = inputs["B"].unsqueeze(2), inputs["C"].unsqueeze(2)
    y, last = mamba_ssm_scan.mamba_ssm_scan(**inputs, lengths=lengths, reverse=False)
    expected = selective_scan(**inputs, lengths=lengths, backend="reference")
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    assert_close(y, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_it_says_why_it_cannot_be_used(monkeypatch):
    u = torch.zeros(2, 5, 4)
    monkeypatch.setattr(mamba_ssm_scan, "installed", lambda: False)
    assert "needs mamba_ssm with its kernel" in mamba_ssm_scan.refusal(u, 16, None, False)
    monkeypatch.setattr(mamba_ssm_scan, "installed", lambda: True)
    with pytest.raises(ValueError, match=r"'mamba_ssm' takes float32.*on a GPU; u is torch.float64 on cpu"):
        selective_scan(**make_inputs(), backend="mamba_ssm")
    on_a_gpu = OnAGpu(u)
    assert mamba_ssm_scan.refusal(on_a_gpu, 16, None, False) is None
    assert "1 to 256 states" in mamba_ssm_scan.refusal(on_a_gpu, 257, None, False)
    assert "initial_state" in mamba_ssm_scan.refusal(on_a_gpu, 16, u, False)
    assert "no gradient" in mamba_ssm_scan.refusal(on_a_gpu, 16, None, True)


@pytest.mark.parametrize(
    ("gradient", "last_state", "initial_state", "taken"),
    [
        (False, True, False, "mamba_ssm"),
        (True, False, False, "mamba_ssm"),
        (True, True, False, "torch"),
        (False, True, True, "torch"),
    ],
)
def test_auto_takes_it_where_it_can_do_all_that_is_asked(monkeypatch, gradient, last_state, initial_state, taken):
    monkeypatch.setattr(mamba_ssm_scan, "installed", lambda: True)
    monkeypatch.setattr(scan, "preferred", lambda *given: False)
    u = OnAGpu(torch.zeros(2, 5, 4))
    u.requires_grad = gradient
    others = (None,) * 8 + (torch.zeros(2, 4, 3) if initial_state else None,)
    assert scan._choose("auto", u, 3, others, last_state) == taken
    monkeypatch.setattr(mamba_ssm_scan, "installed", lambda: False)
    assert scan._choose("auto", u, 3, others, last_state) == "torch"


def test_a_kernel_that_cannot_be_imported_is_not_there(monkeypatch):
    monkeypatch.setattr(mamba_ssm_scan, "find_spec", lambda name: object())
    mamba_ssm_scan.installed.cache_clear()
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", None)
    assert not mamba_ssm_scan.installed()
    mamba_ssm_scan.installed.cache_clear()


class OnAGpu:
    """A tensor as a GPU would have it, for what looks at no number."""

    def __init__(self, tensor):
        self.device, self.dtype, self.shape = torch.device("cuda"), tensor.dtype, tensor.shape
        self.numel = tensor.numel
