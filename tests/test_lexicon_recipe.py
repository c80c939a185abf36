"""recipes/librispeech/lexicon.py: the words of a small WordNet, texts and transcripts."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from samba_asr.decoding.lexicon import read_lexicon

RECIPE = Path(__file__).parents[1] / "recipes" / "librispeech" / "lexicon.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("lexicon_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    for part, lemmas, exceptions in (
        ("noun", "  1 a licence\nlily n 1 @\nsea_lion n 1\n1530s n 1\nhodge-podge n 1\n", "geese goose\n"),
        ("verb", "stop v 1\nvisit v 1\n", "went go\n"),
        ("adj", "happy a 1\nsimple a 1\nset_on_edge a 1\n", ""),
        ("adv", "well r 1\n", "best well\n"),
    ):
        (tmp_path / f"index.{part}").write_text(lemmas, encoding="utf-8")
        (tmp_path / f"{part}.exc").write_text(exceptions, encoding="utf-8")
    return tmp_path


def run(*arguments):
    return subprocess.run([sys.executable, RECIPE, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_regular_forms(recipe):
    for form, expected in (
        (recipe.plural, "box boxes, lily lilies, day days, wish wishes, cat cats"),
        (recipe.past, "stop stopped, visit visited, bake baked, cry cried, play played, fix fixed, need needed"),
        (recipe.participle, "stop stopping, bake baking, see seeing, dye dyeing, cry crying, go going"),
        (recipe.adverb, "happy happily, simple simply, pale palely, sole solely, quick quickly"),
        (recipe.quality, "happy happiness, dull dullness"),
        (recipe.plural_of_o, "potato potatoes, cat cats, radio radios"),
        (recipe.comparative, "big bigger, pale paler, happy happier, simple simpler, narrow narrower, eager eagerer"),
        (recipe.comparative, "polite polite, beautiful beautiful, honest honest, grey greyer, quiet quieter"),
        (recipe.superlative, "loud loudest, blue bluest, wry wriest, idle idlest, ancient ancient"),
    ):
        for pair in expected.split(", "):
            word, other = pair.split()
            assert form(word) == other


def test_words_of_all_sources(folder, tmp_path):
    (tmp_path / "text").write_text("Marjoram, and marjoram; thyme once.\nIt's the sailor\u2019s.\n", encoding="utf-8")
    spoken = {"audio": "a.wav", "duration": 1.0, "text": "DON'T ASK", "speaker": "s", "corpus": "c"}
    (tmp_path / "train.jsonl").write_text(json.dumps(spoken) + "\n", encoding="utf-8")
    out = tmp_path / "lexicon.txt"
    done = run("--wordnet", folder, "--texts", tmp_path / "text", "--manifests", tmp_path / "train.jsonl", "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out}: 102 words\n"), done.stderr
    head, *words = out.read_text(encoding="utf-8").splitlines()
    assert head == "# a licence" and read_lexicon(out) == set(words)
    assert words == sorted(set(words))
    assert {"marjoram", "don't", "ask", "geese", "stopped", "lion", "happily", "happiest", "podge"} < set(words)
    assert {"needn't", "could've", "they'll", "o'clock"} < set(words)
    assert not {"thyme", "it's", "1530s", "n", "licence", "hodge-podge"} & set(words)


def test_what_is_missing(folder, tmp_path):
    (folder / "verb.exc").unlink()
    done = run("--wordnet", folder, "--out", tmp_path / "lexicon.txt")
    assert done.returncode == 2 and "verb.exc" in done.stderr and not (tmp_path / "lexicon.txt").exists()
