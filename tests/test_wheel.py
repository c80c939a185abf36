"""The package as pip installs it: a wheel's files alone, without the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_cpu_scan import TRUE_VALUE, USE, python

from samba_asr.ssm import native

ROOT = Path(__file__).parents[1]
WHERE = "import samba_asr; print(samba_asr.__file__)"
pytestmark = pytest.mark.skipif(native.load_kernels() is None, reason="no C++ compiler")


def test_an_installed_package_builds_its_kernels(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    project, installed = tmp_path / "project", tmp_path / "installed"
    shutil.copytree(ROOT / "samba_asr", project / "samba_asr")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    make = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", make], cwd=project, capture_output=True, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    own = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}  # the latter: not from where the tests run
    done = python(USE + WHERE, SAMBA_ASR_CACHE=str(tmp_path / "cache"), **own)
    assert done.stdout.split() == ["True", str(TRUE_VALUE), str(installed / "samba_asr" / "__init__.py")]
