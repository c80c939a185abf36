"""The native kernels as a compiler makes them for ARM, on an emulated processor, against PyTorch in float64."""

import copy

import pytest
import test_conv
import test_cpu_conv
import test_cpu_linear
import test_cpu_scan
import test_cpu_ssd
import test_cpu_step
import test_scan
import test_ssd
import torch
from emulated_arm import MISSING, EmulatedKernels
from ssm_cases import outcome
from test_cpu_scan import assert_near, single

from samba_asr.ssm import cpu_conv, cpu_linear, cpu_scan, cpu_ssd, cpu_step
from samba_asr.ssm.cpu_linear import Linear
from samba_asr.ssm.mixer import Move

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no {' nor '.join(MISSING)}: Debian's g++-aarch64-linux-gnu and qemu-user have them"
)
BOUND = 1e-4
LENGTHS = torch.tensor([40, 33, 1, 0])


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return EmulatedKernels(tmp_path_factory.mktemp("arm"))


@pytest.fixture
def called(kernels, monkeypatch):
    """Have the wrappers call the emulated kernels; return the names of the functions called."""
    for module in (cpu_conv, cpu_linear, cpu_scan, cpu_ssd, cpu_step):
        monkeypatch.setattr(module, "load_kernels", lambda: kernels)
        monkeypatch.setattr(module, "level", lambda: 0)
        monkeypatch.setattr(module, "pointer", kernels.pointer)
    kernels.called.clear()
    return kernels.called


def test_there_is_one_instruction_set(kernels):
    assert kernels.samba_level() == 0


@pytest.mark.parametrize(("channels", "d_state", "groups"), [(21, 16, None), (15, 5, 3)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_selective_scan(channels, d_state, groups, full, reverse, called):
    inputs = test_scan.make_inputs(4, 40, channels, d_state, groups, full) | {"lengths": LENGTHS}
    expected = outcome(test_scan.scan("reference", reverse=reverse), inputs)
    assert_near(outcome(test_scan.scan("cpu", reverse=reverse), single(inputs)), expected, BOUND)
    assert {"samba_scan_forward", "samba_scan_backward"} <= set(called)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("left_out", ["", "bias", "initial_state"])
@pytest.mark.parametrize("reverse", [False, True])
def test_convolution(width, left_out, reverse, called):
    inputs = test_conv.make_inputs(4, 40, 21, width) | {"lengths": LENGTHS}
    inputs.pop(left_out, None)
    expected = outcome(test_cpu_conv.conv(reverse, "torch"), inputs)
    assert_near(outcome(test_cpu_conv.conv(reverse), single(inputs)), expected, BOUND)
    assert {"samba_conv_forward", "samba_conv_backward"} <= set(called)


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_mamba2_scan(groups, full, reverse, called):
    inputs = test_ssd.make_inputs(4, 40, 3, 16, 32, full, groups) | {"lengths": LENGTHS}
    expected = outcome(test_ssd.ssd(reverse=reverse, backend="torch"), inputs)
    assert_near(outcome(test_ssd.ssd(reverse=reverse), single(inputs)), expected, BOUND)
    assert {"samba_ssd_forward", "samba_ssd_backward"} <= set(called)


@pytest.mark.parametrize("move", [None, Move(torch.tensor([3, 3, 0]), torch.tensor([1, 4, 0]))])
@torch.no_grad()
def test_mamba2_step(move, called):
    mixer, x = test_cpu_step.make_mixer(), torch.randn(3, test_cpu_step.D_MODEL)
    state = test_cpu_step.make_state(mixer, 3 if move is None else 5)
    y, after = test_cpu_step.exact(mixer, x, copy.deepcopy(state), move)
    found, found_after = mixer.step(x, state, move)
    assert_near({"y": found, **found_after._asdict()}, {"y": y, **after._asdict()}, BOUND)
    assert "samba_mamba2_step" in called


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 33, 47), (11, 64, 65)])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_linear(float16, rows, inputs, outputs, bias, called, monkeypatch):
    monkeypatch.setattr(cpu_linear, "_reads_float16", lambda: float16)
    layer, x = Linear(inputs, outputs, bias=bias).eval(), torch.randn(rows, inputs)
    layer.weight.copy_(layer.weight.half())
    assert_near({"y": layer(x)}, {"y": test_cpu_linear.exact(layer, x)}, BOUND)
    assert layer._packed.columns.dtype == (torch.float16 if float16 else torch.float32)
    assert "samba_linear" in called


def test_every_weight_that_float16_holds(called, monkeypatch):
    test_cpu_linear.test_weights_that_float16_holds(0, monkeypatch)
    assert called.count("samba_linear") == 2


def test_bfloat16(called):
    test_cpu_conv.test_bfloat16_is_float32_inside()
    test_cpu_ssd.test_bfloat16_is_float32_inside()
    assert {"samba_conv_backward", "samba_ssd_backward"} <= set(called)


def test_threads(called, monkeypatch):
    test_cpu_scan.test_threads_change_nothing(3, monkeypatch)
    assert called.count("samba_scan_backward") == 3
