"""The layers of the package: who may import whom, and what nobody who transcribes may import."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from samba_asr.config import DecoderConfig, EncoderConfig, MixerConfig, ModelConfig
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import save_checkpoint
from samba_asr.text.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
PACKAGE = "samba_asr"

FRONT = {"atomic", "config", "audio", "ssm", "text"}
RECOGNISER = FRONT | {"model", "decoding"}
ALLOWED = {
    # The package itself: its version, nothing else, or every import would load it all.
    "": set(),
    "atomic": set(),
    "config": set(),
    "audio": {"config"},
    "ssm": {"config"},
    "text": {"atomic", "config"},
    "model": FRONT,
    "decoding": FRONT | {"model"},
    "transcript": set(),
    "subtitles": {"transcript"},
    "writers": {"transcript", "subtitles"},
    "recordings": set(),
    "outputs": {"recordings"},
    "console": set(),
    "search_options": set(),
    "picture": {"transcript"},
    "long_form": RECOGNISER | {"transcript"},
    "one_pass": RECOGNISER,
    "batches": FRONT | {"transcript"},
    "live": RECOGNISER | {"transcript", "long_form"},
    "transcriber": RECOGNISER | {"transcript", "long_form", "one_pass", "batches", "live"},
    "export": RECOGNISER | {"transcript", "transcriber"},
    "job": RECOGNISER | {"transcript", "transcriber", "batches", "writers", "recordings", "outputs", "console"},
    "mic": RECOGNISER | {"transcript", "live", "transcriber", "writers", "console", "search_options"},
    "cli": RECOGNISER
    | {"transcriber", "subtitles", "writers", "recordings", "outputs", "console", "job", "search_options", "mic"},
    "server": RECOGNISER | {"transcript", "transcriber", "subtitles", "writers"},
    "evaluation": RECOGNISER,
    "training": RECOGNISER | {"evaluation"},
}
"""What each part of the package may import besides itself and the package's own name."""

SCRIPTS = {
    "transcribe.py": {"cli"},
    "app.py": RECOGNISER | {"transcript", "transcriber", "picture", "cli"},
    "recipes": set(ALLOWED),
    "benchmarks": set(ALLOWED),
}
"""What the files on top of the package may import from it."""

HEAVY = [
    "gradio",
    "jiwer",
    "jsonargparse",
    "kenlm",
    "librosa",
    "lightning",
    "matplotlib",
    "silero_vad",
    "sounddevice",
    "tokenizers",
    "torchaudio",
    "triton",
    "whisper_normalizer",
]
"""Modules that cost seconds at start-up or belong to an extra."""


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def imports_of(source, name="", is_package=False):
    """Return the dotted names that Python source imports, at any depth; ``from a import b`` gives "a.b"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


@cache
def module_imports(name):
    """Return the modules of the package that a module imports."""
    path = MODULES[name]
    found = set()
    for imported in imports_of(path.read_text(encoding="utf-8"), name, path.name == "__init__.py"):
        if imported == PACKAGE or imported.startswith(PACKAGE + "."):
            # the last part may be a function or a class
            found.add(imported if imported in MODULES else imported.rpartition(".")[0])
    assert found <= set(MODULES), f"{name} imports {found - set(MODULES)}, which do not exist"
    return found


def layer(name):
    return name.split(".")[1] if "." in name else ""


def test_imports_are_found_at_any_depth_and_in_any_form():
    source = """
import a.b as c, d
from e.f import g, h
def later():
    from . import i
    from ..j import k
    if True:
        import l.m
"""
    assert imports_of(source, "p.q.r") == {"a.b", "d", "e.f.g", "e.f.h", "p.q.i", "p.j.k", "l.m"}
    assert imports_of("from . import i\nfrom .j import k", "p.q", is_package=True) == {"p.q.i", "p.q.j.k"}


def test_the_walk_sees_the_package():
    assert f"{PACKAGE}.config" in MODULES
    assert module_imports(f"{PACKAGE}.audio.features") == {f"{PACKAGE}.config"}
    assert f"{PACKAGE}.evaluation.plots" in module_imports(f"{PACKAGE}.evaluation.report")  # inside a function


def test_every_module_has_a_layer():
    unknown = {layer(name) for name in MODULES} - set(ALLOWED)
    assert not unknown, f"give {unknown} a place in ALLOWED"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_lower_layers(name):
    for imported in module_imports(name):
        assert layer(imported) in ALLOWED[layer(name)] | {layer(name), ""}, f"{name} must not import {imported}"


@pytest.mark.parametrize("name", MODULES)
def test_the_package_imports_nothing_from_above_it(name):
    tops = {imported.split(".")[0] for imported in imports_of(MODULES[name].read_text(encoding="utf-8"), name)}
    assert not tops & {"app", "transcribe", "recipes", "benchmarks", "tests", "prepare", "train", "evaluate"}


def test_no_import_goes_in_a_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, f"circle: {' -> '.join([*path, name])}"
        if name not in done:
            path.append(name)
            for imported in sorted(module_imports(name) - {name}):
                visit(imported)
            path.pop()
            done.add(name)

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize("place", SCRIPTS)
def test_scripts_import_what_they_may(place):
    top = ROOT / place
    for path in [top] if top.is_file() else sorted(top.rglob("*.py")):
        for imported in imports_of(path.read_text(encoding="utf-8")):
            if imported.split(".")[0] == PACKAGE and imported.count("."):
                # "from samba_asr import x" is a layer's name or the version
                assert layer(imported) in SCRIPTS[place] | {"__version__"}, f"{path} must not import {imported}"


def loaded_modules(code, *arguments):
    """Run code in a fresh interpreter and return the heavy modules that it loaded."""
    code += f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [f"{PACKAGE}.cli", f"{PACKAGE}.transcriber"])
def test_importing_what_transcribes_loads_nothing_heavy(name):
    assert importlib.util.find_spec(name)
    assert loaded_modules(f"import {name}") == []


def test_transcribing_a_file_loads_nothing_heavy(quilter, tmp_path):
    tokenizer = Tokenizer.train(["mister quilter is the apostle of the middle classes"], vocab_size=24)
    mixer = MixerConfig(d_state=8, head_dim=8)
    config = ModelConfig(
        vocab_size=24,
        d_model=16,
        encoder=EncoderConfig(n_layers=1, subsampling_channels=4, mixer=mixer),
        decoder=DecoderConfig(n_layers=1, mixer=mixer),
    )
    save_checkpoint(tmp_path, SambaASR(config), tokenizer, "A test's model.")
    code = "import sys; from samba_asr.cli import main; assert main(sys.argv[1:]) == 0"
    assert loaded_modules(code, quilter, "--model", tmp_path) == []


def test_training_imports_nothing_of_the_extra_distil():
    """With it blocked: some package that training imports may load it where it is installed."""
    loaded_modules("import sys\nsys.modules['tokenizers'] = None\nimport samba_asr.training.run")


def test_heavy_modules_would_be_seen():
    assert loaded_modules("import jiwer") == ["jiwer"]


def tracked_files():
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


ABSOLUTE = re.compile(r"(?<![\w.~})\]-])/(?:home|Users|root|tmp|work|scratch|mnt)(?![\w-])")
UPWARDS = re.compile(r"(?<![\w./])(?:\.\./)+\w[\w./-]*")


def places_elsewhere(text, folder):
    """Return the absolute paths of home and scratch folders, and the paths upwards from a folder that lead nowhere."""
    upwards = [(found, (folder / found).resolve()) for found in UPWARDS.findall(text)]
    outside = [found for found, path in upwards if not (path.is_relative_to(ROOT) and path.exists())]
    return ABSOLUTE.findall(text) + outside


def test_no_file_names_a_place_outside_the_project():
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = places_elsewhere(text, path.parent)
        assert not found, f"{path.relative_to(ROOT)} names {found}: only one machine has that"


@pytest.mark.parametrize("root", ["home", "Users", "root", "tmp", "work", "scratch", "mnt"])
def test_places_outside_the_project_are_seen(root):
    for text in (f"/{root}/someone/a.wav", f"'/{root}/x'", f"see `/{root}`", f"cd /{root}\n", f"file:///{root}/x"):
        assert places_elsewhere(text, ROOT), text
    for text in (f"a/{root}/x", f"https://host/{root}/x", f"{{x}}/{root}/x", f"/{root}ed", f"~/{root}", f"./{root}"):
        assert not places_elsewhere(text, ROOT), text
    above = ".." + "/"
    for text in (f"see {above}elsewhere/notes.md", f"[x]({above}{above}x)", f"({above}README.md)"):
        assert places_elsewhere(text, ROOT), text
    assert not places_elsewhere(f"[x]({above}README.md), conf/{above}conf", ROOT / "tests")


def test_no_file_is_a_drawer_for_everything():
    assert not [path for path in tracked_files() if path.name == "utils.py"]
