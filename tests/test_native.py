"""What all native kernels have in common: the choice of the instruction set, and that each is used well."""

import ctypes
import os
import subprocess
import sys
import time

import pytest
import torch
from ssm_cases import on_threads

from samba_asr.ssm import cpu_conv, cpu_linear, cpu_scan, cpu_ssd, native
from samba_asr.ssm.conv import causal_conv1d
from samba_asr.ssm.cpu_linear import Linear
from samba_asr.ssm.native.calls import level
from samba_asr.ssm.scan import selective_scan
from samba_asr.ssm.ssd import ssd_scan

pytestmark = pytest.mark.skipif(native.load_kernels() is None, reason="no C++ compiler")


@pytest.fixture
def asked(monkeypatch):
    """Ask for an instruction set."""

    def ask(number):
        level.cache_clear()
        monkeypatch.setenv("SAMBA_ASR_CPU_LEVEL", number)
        return level()

    yield ask
    level.cache_clear()


def test_a_lesser_instruction_set_can_be_asked_for(asked):
    widest = asked("2")
    assert [asked(number) for number in "012"] == [min(n, widest) for n in (0, 1, 2)]


@pytest.mark.parametrize("number", ["3", "-1", "avx2", ""])
def test_an_unknown_instruction_set_is_named(asked, number):
    with pytest.raises(ValueError, match=f"SAMBA_ASR_CPU_LEVEL \\({number}\\)"):
        asked(number)


def kernels():
    """Name a call of each kernel."""
    x, delta, shared = torch.randn(2, 200, 6, 64), torch.rand(2, 200, 6), torch.randn(2, 200, 6, 64)
    u, small = torch.randn(2, 200, 384), torch.randn(2, 200, 1, 16)
    weight, layer, row = torch.randn(384, 1, 4), Linear(384, 1536).eval(), torch.randn(8, 384)
    return {
        "ssd": lambda: ssd_scan(x, delta, -torch.ones(6), shared, shared),
        "conv": lambda: causal_conv1d(u, weight, None),
        "scan": lambda: selective_scan(u, u.abs(), -torch.ones(384, 16), small, small),
        "linear": lambda: layer(row),
    }


@pytest.mark.parametrize("kernel", ["ssd", "conv", "scan", "linear"])
@torch.no_grad()
def test_half_as_wide_an_instruction_set_costs_no_more_than_it_must(kernel, monkeypatch):
    """AVX2 has half of AVX-512's width and registers. Vectors that do not fit these go by way of memory: that cost 20
    to 40 times as much."""
    if cpu_ssd.level() < 2:
        pytest.skip("this CPU lacks AVX-512")
    run = kernels()[kernel]
    best = {1: float("inf"), 2: float("inf")}
    for _ in range(15):
        for number in best:
            for module in (cpu_conv, cpu_linear, cpu_scan, cpu_ssd):
                monkeypatch.setattr(module, "level", lambda number=number: number)
            started = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - started)
    assert best[1] < 9 * best[2]


def large_scan():
    """Enough work for several threads."""
    torch.manual_seed(1)
    u, delta, shared = torch.randn(4, 300, 256), torch.rand(4, 300, 256), torch.randn(4, 300, 16)
    y = selective_scan(u, delta, -torch.ones(256, 16), shared, shared, backend="cpu")
    return {"y": y}


def test_own_threads_and_pytorchs_give_the_same():
    shared = on_threads(large_scan)
    native.load_kernels().samba_use_openmp(None)
    try:
        own = on_threads(large_scan)
    finally:
        native._share_threads(native.load_kernels())
    for result in (*shared, *own):
        assert torch.equal(result["y"], shared[0]["y"])


SHARED = """
import os, torch
torch.set_num_threads(4)
(torch.rand(1 << 22) + 1).sum()  # PyTorch's threads are there now
from samba_asr.ssm import cpu_scan
cpu_scan.load_kernels()
before = set(os.listdir("/proc/self/task"))
stop, seen = False, set()
import threading
def watch():
    while not stop:
        seen.update(os.listdir("/proc/self/task"))
watcher = threading.Thread(target=watch)
watcher.start()
before.add(str(watcher.native_id))
for _ in range(20):
    cpu_scan.exponentials(torch.rand(4, 2000, 256), 16)
stop = True
watcher.join()
print(len(seen - before))
"""


gomp = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "GOMP_parallel"), reason="PyTorch has another OpenMP here")


def printed(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@gomp
def test_kernels_run_on_pytorchs_threads():
    """Threads of their own would fight over the cores with PyTorch's, which spin while they wait."""
    assert printed(SHARED) == ["0"]


FEWER = """
import os, torch
torch.set_num_threads(4)
from samba_asr.ssm import cpu_scan
seen = set()
for _ in range(20):
    (torch.rand(1 << 22) + 1).sum()  # by four threads
    cpu_scan.exponentials(torch.rand(2, 70, 256), 16)  # for two
    seen.update(os.listdir("/proc/self/task"))
print(len(seen) - len(os.listdir("/proc/self/task")))
"""


@gomp
def test_a_kernel_for_fewer_threads_ends_none_of_pytorchs():
    assert printed(FEWER) == ["0"]


FORKED = """
import os, torch
torch.set_num_threads(2)
from samba_asr.ssm import cpu_scan
delta = torch.rand(4, 2000, 256)
expected = cpu_scan.exponentials(delta, 16)
child = os.fork()
if not child:
    os._exit(0 if torch.equal(cpu_scan.exponentials(delta, 16), expected) else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_threads_of_its_own():
    assert printed(FORKED) == ["0"]
