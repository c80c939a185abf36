"""The selective scan's triton backend: in Triton's interpreter, through its compiler, and on a GPU (-m gpu)."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ssm_cases import outcome
from test_cpu_scan import assert_near, single
from test_scan import make_inputs, scan

from samba_asr.ssm import triton_scan
from samba_asr.ssm.scan import selective_scan

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not triton_scan.installed(), reason="triton cannot be imported")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU")


@pytest.mark.skipif(not triton_scan.installed((3, 9)), reason="older interpreters fail with numpy 2 or want a GPU")
def test_in_the_interpreter():
    """All of interpreted_triton_scan.py, in a process where TRITON_INTERPRET=1 stands before triton is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted_triton_scan.py")],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parent,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def signature_of(kernel, types, constants):
    """A kernel's arguments as the compiler wants them."""
    kinds = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    places = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
    return kinds, places


@needs_triton
@pytest.mark.parametrize("kernel", ["scan_kernel", "adjoint_kernel", "gradient_kernel", "carry_kernel"])
@pytest.mark.parametrize("full", [False, True])
def test_it_compiles_without_a_gpu(kernel, full):
    if triton_scan.interpreted():
        pytest.skip("TRITON_INTERPRET is set")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from samba_asr.ssm import triton_kernels

    function = getattr(triton_kernels, kernel)
    shape = triton_scan.shapes(kernel, 16, 1024)[-1]
    flags = ("SOFTPLUS", "REVERSE", "HAS_D", "HAS_Z", "HAS_BIAS", "HAS_LENGTHS", "WIDE", "KEEP", "BACKWARDS")
    constants = {"STATE": 16 if full else 13, "CHUNK": 16, "ENDS": not full, "BLOCK": 128}
    constants |= shape._asdict() | dict.fromkeys(flags, full)
    numbers = ("time", "channels", "groups", "per_group", "segment", "segments", "unit", "batches")
    types = dict.fromkeys(numbers, "i32") | {"lengths": "*i64"}
    types |= {name: "i32" for name in function.arg_names if name.endswith(("_batch", "_time"))}
    if full:
        types |= dict.fromkeys(("u", "delta", "z", "y", "dy", "du", "ddelta", "dz"), "*bf16")
    source = ASTSource(function, *signature_of(function, types, constants))
    options = {"num_warps": shape.W, "enable_fp_fusion": True}
    compiled = compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    assert kernel in compiled.asm["ptx"]


def test_it_says_why_it_cannot_be_used(monkeypatch):
    inputs = make_inputs()
    with pytest.raises(ValueError, match=r"'triton' takes float32, bfloat16 or float16; u is .*float64; use 'torch'"):
        selective_scan(**inputs, backend="triton")
    wide = single(make_inputs(1, 1, 2, 257))
    with pytest.raises(ValueError, match="'triton' takes 1 to 256 states a channel; A has 257; use 'torch'"):
        selective_scan(**wide, backend="triton")
    monkeypatch.setattr(triton_scan, "installed", lambda: True)
    monkeypatch.setattr(triton_scan, "interpreted", lambda: False)
    with pytest.raises(ValueError, match="'triton' runs on NVIDIA GPUs; u is on cpu; use 'auto'"):
        selective_scan(**single(inputs), backend="triton")
    monkeypatch.setattr(triton_scan, "installed", lambda: False)
    with pytest.raises(ValueError, match=r"'triton' needs triton 3.3 or newer: pip install -e '.\[triton\]'"):
        selective_scan(**single(inputs), backend="triton")


def test_time_is_cut_only_where_the_gpu_would_be_idle(monkeypatch):
    monkeypatch.setattr(triton_scan, "multiprocessors", lambda device: 132)
    gpu = torch.device("cuda")
    assert triton_scan.segment_length(16 * 1024, 1500, 16, gpu) >= 1500
    for lanes, time in ((1024, 1500), (2048, 6000), (16, 100), (1, 1)):
        length = triton_scan.segment_length(lanes, time, 16, gpu)
        assert length % triton_scan.CHUNK == 0
        assert length < time or time <= triton_scan.CHUNK


def test_shapes_fill_whole_warps():
    for kernel in ("scan_kernel", "adjoint_kernel", "gradient_kernel"):
        for d_state in (1, 2, 3, 5, 8, 16, 64, 200, 256):
            for per_group in (1, 20, 1024):
                found = triton_scan.shapes(kernel, d_state, per_group)
                assert found
                for shape in found:
                    assert shape.NL * shape.CL == 32
                    assert d_state <= shape.NT * shape.NL < 2 * d_state or d_state == 1


@pytest.mark.parametrize(
    ("asked", "capability", "taken"),
    [("1", (8, 0), True), ("1", (7, 5), False), ("0", (9, 0), False), (None, (9, 0), True)],
)
@pytest.mark.parametrize("right", [True, False])
def test_auto_takes_it_where_it_is_right_and_not_forbidden(monkeypatch, asked, capability, taken, right):
    monkeypatch.setattr(triton_scan, "agrees", lambda *given: right)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(triton_scan, "refusal", lambda *given: None)
    monkeypatch.setattr(triton_scan, "interpreted", lambda: False)
    monkeypatch.delenv("SAMBA_ASR_TRITON", raising=False)
    if asked is not None:
        monkeypatch.setenv("SAMBA_ASR_TRITON", asked)
    on_a_gpu = SimpleNamespace(device=torch.device("cuda"), shape=(1, 2, 4))
    assert triton_scan.preferred(on_a_gpu, 16, selective_scan) is (taken and right)


def failing(**given):
    raise RuntimeError("no ptxas\nand more")


@pytest.mark.parametrize(
    ("kernels", "complaint"),
    [
        (lambda **given: selective_scan(**given), None),
        (lambda **given: selective_scan(**given) * 1.01, "they are off by 0.01 of the largest value"),
        (lambda **given: selective_scan(**given | {"lengths": None}), "they are off by"),
        (failing, "RuntimeError: no ptxas)"),
    ],
)
def test_a_trial_tells_right_from_wrong(capfd, kernels, complaint):
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")

    def stand_in(*tensors, backend, **options):
        given = dict(zip(names, tensors, strict=True)) | options
        return selective_scan(**given, backend="torch") if backend == "torch" else kernels(**given)

    before = torch.random.get_rng_state()
    with torch.inference_mode():
        assert triton_scan.agrees(torch.device("cpu"), 5, 6, stand_in) is (complaint is None)
    assert torch.equal(torch.random.get_rng_state(), before)
    said = capfd.readouterr().err
    assert (said == "") if complaint is None else (complaint in said and said.count("\n") == 1)


def to_gpu(inputs):
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in inputs.items()}


GPU_CASES = [  # batch, time, channels, d_state, groups, full
    (4, 700, 256, 16, None, True),
    (1, 3001, 200, 16, 2, True),  # in segments
    (3, 250, 96, 5, 1, True),
    (2, 250, 64, 64, None, True),
    (2, 250, 64, 1, None, True),
    (2, 250, 64, 256, None, True),
    (2, 250, 33, 16, None, False),
]


@pytest.mark.gpu
@on_gpu
@needs_triton
@pytest.mark.parametrize("sizes", GPU_CASES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_gpu_equals_reference(sizes, reverse, ragged):
    inputs = make_inputs(*sizes)
    inputs["lengths"] = torch.tensor([sizes[1] - 5, 0, 1, sizes[1]])[: sizes[0]] if ragged else None
    expected = outcome_on_gpu(scan("reference", reverse=reverse), inputs)
    assert_near(outcome_on_gpu(scan("triton", reverse=reverse), single(inputs)), expected, 1e-4)
    if sizes[3] == 16:
        halves = single(inputs) | {name: inputs[name].bfloat16() for name in ("u", "delta", "B", "C")}
        wide = inputs | {name: value.double() for name, value in halves.items() if torch.is_tensor(value)}
        wide["lengths"] = inputs["lengths"]
        expected = outcome_on_gpu(scan("reference", reverse=reverse), wide)
        assert_near(outcome_on_gpu(scan("auto", reverse=reverse), halves), expected, 1e-2)


def outcome_on_gpu(function, inputs):
    found = outcome(lambda **leaves: tuple(out.cpu() for out in function(**to_gpu(leaves))), inputs)
    return {name: value.cpu() for name, value in found.items()}


@pytest.mark.gpu
@on_gpu
@needs_triton
@pytest.mark.parametrize("d_state", [1, 4, 16, 64])
def test_gpu_every_shape(d_state, monkeypatch):
    inputs = make_inputs(2, 100, 256, d_state) | {"lengths": torch.tensor([100, 37])}
    expected = outcome_on_gpu(scan("reference"), inputs)
    for kernel in ("scan_kernel", "gradient_kernel"):
        for shape in triton_scan.shapes(kernel, d_state, 256):
            with monkeypatch.context() as patch:
                patch.setattr(triton_scan, "shapes", lambda *_, shape=shape: [shape])
                triton_scan._tuned.cache_clear()
                assert_near(outcome_on_gpu(scan("triton"), single(inputs)), expected, 1e-4)
    triton_scan._tuned.cache_clear()


@pytest.mark.gpu
@on_gpu
@needs_triton
def test_gpu_gives_the_same_bits_twice():
    inputs = single(make_inputs(2, 500, 256, 16))
    first, second = (outcome_on_gpu(scan("triton"), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@on_gpu
@needs_triton
def test_gpu_auto_takes_triton_where_it_is_asked_for(monkeypatch):
    calls = []
    real = triton_scan.triton_scan
    monkeypatch.setattr("samba_asr.ssm.scan.triton_scan", lambda *args: calls.append(1) or real(*args))
    inputs = to_gpu(single(make_inputs()))
    monkeypatch.delenv("SAMBA_ASR_TRITON", raising=False)
    selective_scan(**inputs)
    assert calls == []
    monkeypatch.setenv("SAMBA_ASR_TRITON", "1")
    selective_scan(**inputs)
    assert calls == [1]
