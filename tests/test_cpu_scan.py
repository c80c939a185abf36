"""The selective scan's native kernels against the torch backend in float64, and how they are built."""

import os
import subprocess
import sys

import pytest
import torch
from ssm_cases import on_threads, outcome, padding_of, with_padding
from test_scan import BY_TIME, make_inputs, scan
from torch.testing import assert_close

from samba_asr.ssm import cpu_scan, native
from samba_asr.ssm.scan import selective_scan

pytestmark = pytest.mark.skipif(native.load_kernels() is None, reason="no C++ compiler")


def single(inputs):
    return {name: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in inputs.items()}  # fmt: skip


def largest(tensor):
    return tensor.abs().max().item() if tensor.numel() else 0.0


def assert_near(found, expected, bound=1e-5, plain=None):
    """Bound the largest difference, over the largest value, of each tensor. A gradient may all but cancel out, and then
    no float32 is near: PyTorch's own, ``plain``, says how far off that is, and three times it will do."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        allowed = bound * max(largest(value), 1e-30)
        if plain is not None:
            allowed = max(allowed, 3 * largest(plain[name].double() - value))
        assert largest(found[name].double() - value) <= allowed, name


SHAPES = [  # batch, time, channels, d_state, groups
    (2, 70, 40, 16, None),  # two blocks and half a one, two chunks and a bit
    (3, 33, 24, 5, 2),  # groups narrower than a vector
    (4, 7, 4, 3, 4),  # a channel a group
    (1, 96, 64, 16, 1),  # whole chunks and vectors
    (2, 40, 32, 64, 2),
    (1, 3, 17, 1, None),
    (2, 600, 36, 16, 2),  # three tiles of three blocks, one of them narrow, in each group
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_values_and_gradients(shape, full, reverse, ragged):
    batch, time, channels, d_state, groups = shape
    inputs = make_inputs(batch, time, channels, d_state, groups, full)
    inputs["lengths"] = torch.tensor([time - 2, 1, 0, time])[:batch] if ragged else None
    expected = outcome(scan("torch", reverse=reverse), inputs)
    plain = outcome(scan("torch", reverse=reverse), single(inputs))
    assert_near(outcome(scan("cpu", reverse=reverse), single(inputs)), expected, plain=plain)


@pytest.mark.parametrize("option", ["D", "z", "delta_bias", "delta_softplus", "initial_state"])
def test_each_option_alone(option):
    given = make_inputs(2, 40, 20, 16)[option]
    given = given.abs() if option == "delta_bias" else given  # negative steps explode
    inputs = make_inputs(2, 40, 20, 16, full=False) | {option: given}
    assert_near(outcome(scan("cpu"), single(inputs)), outcome(scan("torch"), inputs))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_instruction_set(level, monkeypatch):
    if level > cpu_scan.level():
        pytest.skip("this CPU lacks it")
    inputs = make_inputs(2, 70, 40, 16, 2) | {"lengths": torch.tensor([70, 31])}
    expected = outcome(scan("torch"), inputs)
    monkeypatch.setattr(cpu_scan, "level", lambda: level)
    assert_near(outcome(scan("cpu"), single(inputs)), expected)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_threads_change_nothing(batch, monkeypatch):
    monkeypatch.setattr(cpu_scan, "threads_for", lambda work, least: torch.get_num_threads())
    inputs = single(make_inputs(batch, 70, 72, 16))
    results = on_threads(lambda: outcome(scan("cpu"), inputs))
    for result in results[1:]:
        assert_close(result, results[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(result["y"], results[0]["y"])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("value", [1e30, torch.nan, torch.inf])
def test_padding_changes_nothing(reverse, value):
    lengths = torch.tensor([40, 0, 1, 33])
    inputs = single(make_inputs(4, 40, 20, 3, groups=2)) | {"lengths": lengths}
    spoilt = inputs | {name: with_padding(inputs[name], lengths, value) for name in BY_TIME}
    found = outcome(scan("cpu", reverse=reverse), spoilt)
    assert_close(found, outcome(scan("cpu", reverse=reverse), inputs), rtol=0, atol=0)
    for name in ("y", *(f"gradient of {name}" for name in BY_TIME)):
        assert not padding_of(found[name], lengths).any(), name


def test_steps_from_very_small_to_very_large():
    delta = torch.logspace(-6, 3, 64, dtype=torch.float64)[None, :, None].expand(1, 64, 16)
    raw = torch.log(torch.expm1(delta.clamp_max(600))).where(delta < 600, delta)
    inputs = make_inputs(1, 64, 16, 4) | {"delta": raw, "delta_bias": torch.zeros(16, dtype=torch.float64)}
    ours, (y, state) = scan("cpu")(**single(inputs)), scan("torch")(**inputs)
    assert_near({"y": ours[0], "state": ours[1]}, {"y": y, "state": state})
    # The smallest steps are not lost beside the others: each frame's drive by itself.
    alone = inputs | {"initial_state": torch.zeros(1, 16, 4, dtype=torch.float64)}
    for t in (0, 5, 20):
        frame = alone | {name: alone[name][:, t : t + 1] for name in BY_TIME}
        assert_close(scan("cpu")(**single(frame))[1].double(), scan("torch")(**frame)[1], rtol=2e-6, atol=1e-30)


def test_only_the_gradients_that_are_asked_for():
    inputs = single(make_inputs(2, 40, 20, 16))
    for name in ("u", "A", "initial_state"):
        leaf = inputs[name].clone().requires_grad_()
        y, _ = scan("cpu")(**inputs | {name: leaf})
        (found,) = torch.autograd.grad(y.sum(), leaf)
        assert_close(found, outcome_of_y(inputs, name), rtol=1e-4, atol=1e-4)


def outcome_of_y(inputs, name):
    leaf = inputs[name].clone().requires_grad_()
    return torch.autograd.grad(scan("torch")(**inputs | {name: leaf})[0].sum(), leaf)[0]


def test_views_that_are_not_contiguous():
    inputs = single(make_inputs(2, 40, 20, 16))
    turned = {name: inputs[name].transpose(0, 1).contiguous().transpose(0, 1) for name in BY_TIME}
    assert_close(scan("cpu")(**inputs | turned), scan("cpu")(**inputs), rtol=0, atol=0)


def test_auto_takes_the_kernels_for_float32_alone(monkeypatch):
    calls = []
    monkeypatch.setattr("samba_asr.ssm.scan.cpu_scan", lambda *args: calls.append(1) or cpu_scan.cpu_scan(*args))
    inputs = make_inputs()
    selective_scan(**inputs)
    assert not calls
    selective_scan(**single(inputs))
    assert calls
    with pytest.raises(ValueError, match=r"'cpu' takes float32.*float64.*use 'torch'"):
        selective_scan(**inputs, backend="cpu")
    calls.clear()
    wide = single(make_inputs(2, 3, 4, 300))
    assert_close(selective_scan(**wide), selective_scan(**wide, backend="torch"))
    assert not calls


def test_memory_of_a_long_recording():
    script = (
        "import resource, torch; from samba_asr.ssm.scan import selective_scan as f\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "torch.set_num_threads(2); r = lambda *s: torch.randn(*s).requires_grad_()\n"
        "run = lambda t: f(r(1, t, 512), r(1, t, 512), -torch.rand(512, 16), r(1, t, 16), r(1, t, 16),\n"
        "                 delta_softplus=True).sum().backward()\n"
        "run(100); before = peak(); run(15_000); print((peak() - before) * 1024 / (4 * 15_000 * 512))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # u and delta themselves are 2 of these; with y, its gradient and theirs 6 at least
    assert float(done.stdout) < 7 + 2


def python(code, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "CXX"} | variables
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, timeout=300
    )


USE = """
import torch
from samba_asr.ssm.native import load_kernels
from samba_asr.ssm.scan import selective_scan
x = torch.ones(1, 3, 2)
y = selective_scan(x, x, -torch.ones(2, 1), x[..., :1], x[..., :1])
print(load_kernels() is not None, round(y[0, 2, 0].item(), 4))
"""
TRUE_VALUE = round(1 + torch.tensor(-1.0).exp().item() + torch.tensor(-2.0).exp().item(), 4)


def test_it_is_built_once_and_said_on_standard_error(tmp_path):
    first = python(USE, SAMBA_ASR_CACHE=str(tmp_path / "cache"))
    assert first.stdout.split() == ["True", str(TRUE_VALUE)]
    assert "building its CPU kernels, once" in first.stderr
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]
    second = python(USE, SAMBA_ASR_CACHE=str(tmp_path / "cache"))
    assert (second.stdout, second.stderr) == (first.stdout, "")


@pytest.mark.parametrize("why", ["no compiler", "a broken one", "no place", "switched off"])
def test_without_kernels_torch_does_the_work(why, tmp_path):
    variables = {"SAMBA_ASR_CACHE": str(tmp_path / "cache")}
    if why == "no compiler":
        variables["PATH"] = str(tmp_path)
    if why == "a broken one":
        broken = tmp_path / "bin" / "c++"
        broken.parent.mkdir()
        broken.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'cannot find cc1plus' >&2\nexit 1\n")
        broken.chmod(0o755)
        variables["CXX"] = str(broken)
    if why == "no place":
        (tmp_path / "cache").write_text("a file")
    if why == "switched off":
        variables["SAMBA_ASR_NATIVE"] = "0"
    done = python(USE, **variables)
    assert done.stdout.split() == ["False", str(TRUE_VALUE)]
    says = {
        "no compiler": "no C++ compiler",
        "a broken one": "cannot find cc1plus",
        "no place": "PyTorch does their work",
    }
    assert says.get(why, "") in done.stderr
    assert bool(done.stderr) == (why != "switched off")


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_may_write_is_not_loaded(what, tmp_path):
    cache = tmp_path / "cache"
    variables = {"SAMBA_ASR_CACHE": str(cache)}
    assert python(USE, **variables).stdout.split()[0] == "True"
    (cache if what == "folder" else next(cache.iterdir())).chmod(0o777)
    done = python(USE, **variables)
    assert done.stdout.split() == ["False", str(TRUE_VALUE)]
    assert "may be written by others" in done.stderr


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "delta_bias", "initial_state"])
def test_nan_stays_nan(name):
    inputs = single(make_inputs(2, 40, 20, 16))
    inputs[name] = inputs[name].clone()
    inputs[name].flatten()[5] = torch.nan
    found, expected = outcome(scan("cpu"), inputs), outcome(scan("torch"), inputs)
    for key in ("y", "state"):
        assert torch.equal(found[key].isnan(), expected[key].isnan()), key
        assert found[key].isnan().any() or name == "C"
    assert any(value.isnan().any() for key, value in found.items() if key.startswith("gradient"))


def test_nothing_is_kept_where_no_gradient_is_wanted(monkeypatch):
    wanted = []
    apply = cpu_scan._CpuScan.apply
    monkeypatch.setattr(cpu_scan._CpuScan, "apply", lambda *args: wanted.append(args[-1]) or apply(*args))
    inputs = single(make_inputs(2, 40, 20, 16))
    leaf = inputs | {"D": torch.nn.Parameter(inputs["D"])}
    scan("cpu")(**leaf)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            scan("cpu")(**leaf)
    scan("cpu")(**inputs)
    assert wanted == [True, False, False, False]


def test_tensors_elsewhere_never_reach_a_kernel():
    inputs = single(make_inputs())
    assert cpu_scan.available(inputs["u"], 3, inputs["A"], None)
    assert not cpu_scan.available(inputs["u"], 3, inputs["A"].to("meta"))


def test_exponentials_of_more_states_than_kernels_hold():
    with pytest.raises(ValueError, match="no kernels for 257 states"):
        cpu_scan.exponentials(torch.rand(1, 2, 3), 257)


@pytest.mark.parametrize("states", [1, 5, 16])
@pytest.mark.parametrize(("batch", "channels"), [(1, 3), (2, 37)])
def test_exponentials_add_up(states, batch, channels):
    delta = torch.rand(batch, channels, 50, dtype=torch.float64).transpose(1, 2)
    n = torch.arange(1.0, states + 1)
    expected = torch.exp(-delta.double().unsqueeze(-1) * n).sum((1, 3)).float()
    found = on_threads(lambda: {"sums": cpu_scan.exponentials(delta, states)})
    for sums in found:
        assert_close(sums["sums"], expected, rtol=1e-5, atol=0)
