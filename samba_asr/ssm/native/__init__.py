"""The kernels for CPUs in C++, built on first use.

Why so: they have a plain C interface (kernels.cpp), called through ctypes, so a build needs a compiler and nothing
else, not PyTorch's headers, and takes seconds. It happens once; the result lies in a cache folder under a name that
changes with the sources and the compiler. Where there is no compiler, or the build fails, one line on standard error
says so and the ``torch`` backends do the work. The code picks AVX-512 or AVX2 when it runs; on ARM the compiler makes
NEON of the same lines, which tests/test_arm.py runs on an emulated processor: that they compute the right thing there
is known, how fast is not. GCC 12, Clang 14 and Clang 19 were tried, for x86 and for 64-bit ARM under Linux.

They run on PyTorch's OpenMP threads where that library has GCC's interface, and on threads of their own where it has
not, or in a forked process. They have no second derivatives; the ``torch`` backends have.

``SAMBA_ASR_NATIVE=0`` switches the kernels off, ``SAMBA_ASR_CPU_LEVEL=1`` does without AVX-512, ``0`` without AVX2 too;
``SAMBA_ASR_CACHE`` names another cache folder, ``CXX`` another compiler.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
SECONDS = 300


@cache
def load_kernels() -> ctypes.CDLL | None:
    """Return the kernels, building them if need be; None where they cannot be had."""
    if os.environ.get("SAMBA_ASR_NATIVE", "1") == "0":
        return None
    try:
        kernels = ctypes.CDLL(str(_built()))
        _share_threads(kernels)
        return kernels
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"samba-asr: no kernels for this CPU ({error}); PyTorch does their work, slower", file=sys.stderr)
        return None


def _share_threads(kernels: ctypes.CDLL) -> None:
    """Let the kernels run on the threads of PyTorch's OpenMP library. PyTorch makes its symbols visible to all of the
    process; where it has another library, or none, the kernels start threads of their own."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return
    kernels.samba_use_openmp(ctypes.cast(parallel, ctypes.c_void_p))
    if hasattr(os, "register_at_fork"):  # a forked process has none of these threads, and would wait for them
        os.register_at_fork(after_in_child=lambda: kernels.samba_use_openmp(None))


def _built() -> Path:
    """Return the cached library, built if it is not there."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))), None)
    if compiler is None:
        raise RuntimeError("no C++ compiler: c++, g++ or clang++")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=SECONDS).stdout
    digest = hashlib.sha256(b"\0".join([version, platform.machine().encode(), " ".join(FLAGS).encode()]))
    for source in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(source.read_bytes())
    path = _cache_folder().expanduser().absolute() / f"kernels-{digest.hexdigest()[:16]}.so"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(path.parent)
    if not path.exists():
        compile_kernels(compiler, path)
    _check_owner(path)
    return path


def _check_owner(path: Path) -> None:
    """Raise RuntimeError where somebody else may have put code."""
    status = path.stat()
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        raise RuntimeError(f"{path} may be written by others; SAMBA_ASR_CACHE names another folder")


def compile_kernels(compiler: str, path: Path) -> None:
    """Build the library; several processes may do so at once. Raises RuntimeError with the compiler's words."""
    print("samba-asr: building its CPU kernels, once (less than a minute)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, str(SOURCES / "kernels.cpp"), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{compiler}: {lines[0]}")
        made.chmod(0o700)
        os.replace(made, path)


def _cache_folder() -> Path:
    if own := os.environ.get("SAMBA_ASR_CACHE"):
        return Path(own)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "samba-asr"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samba-asr"
