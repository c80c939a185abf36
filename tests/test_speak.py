"""recipes/whisper_to_samba/speak.py, with an engine that hums."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from samba_asr.training import voices
from samba_asr.training.corpora import find_corpora, scan_corpus
from samba_asr.training.manifest import Utterance, write_manifest

SCRIPT = Path(__file__).parent.parent / "recipes" / "whisper_to_samba" / "speak.py"
SENTENCES = [f"{word} is a word that is not the next" for word in ("alder", "birch", "cedar", "dogwood", "elm", "fir")]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("speak", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def said(monkeypatch):
    """What the engine was asked to say."""
    texts = []

    class Hum:
        def __call__(self, text, voice, rng):
            texts.append(text)
            if text.startswith("elm"):
                raise RuntimeError("no such tree")
            return np.zeros(0 if text.startswith("fir") else int(16_000 / voice.speed), np.float32)

    monkeypatch.setattr(voices, "Speaker", Hum)
    return texts


@pytest.fixture
def options(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
    return ["--text", str(tmp_path / "text.txt"), "--count", "10", "--out", str(tmp_path / "data" / "spoken")]


def scan(tmp_path):
    (split,) = scan_corpus(find_corpora(tmp_path / "data")[0])
    return split


def test_prepare_reads_what_was_spoken(recipe, said, options, tmp_path, capsys):
    assert recipe.main(options) == 0
    assert sorted(said) == sorted(SENTENCES)
    split = scan(tmp_path)
    assert split.corpus == "synthetic-spoken"
    assert sorted(utterance.text for utterance in split.utterances) == SENTENCES[:4]
    for utterance in split.utterances:
        assert soundfile.info(utterance.audio).samplerate == 16_000
        assert said.index(utterance.text) == int(Path(utterance.audio).stem)
    assert len({utterance.speaker for utterance in split.utterances}) == 4
    err = capsys.readouterr().err
    assert "no such tree" in err
    assert "2 sentences could not be spoken" in err


@pytest.mark.parametrize("cut", [5, 20, -3])
def test_it_goes_on_where_it_was_stopped(cut, recipe, said, options, tmp_path):
    assert recipe.main(options) == 0
    table = tmp_path / "data" / "spoken" / "manifest.tsv"
    whole = sorted(line for line in table.read_text().splitlines() if line)
    table.write_text("\n".join(whole[:2]) + "\n" + whole[2][:cut])
    said.clear()
    assert recipe.main(options) == 0
    assert len(said) == 4  # two that were lost and two that cannot be said
    assert sorted(utterance.text for utterance in scan(tmp_path).utterances) == SENTENCES[:4]
    assert set(whole) <= set(table.read_text().splitlines())


def test_parts_make_a_whole(recipe, said, options, tmp_path):
    assert recipe.main([*options, "--part", "0/2"]) == recipe.main([*options, "--part", "1/2"]) == 0
    assert sorted(said) == sorted(SENTENCES)
    assert sorted(utterance.text for utterance in scan(tmp_path).utterances) == SENTENCES[:4]


def test_sentences_of_other_manifests_are_left_out(recipe, said, options, tmp_path):
    write_manifest(tmp_path / "dev.jsonl", [Utterance("a.wav", 1.0, SENTENCES[0].upper() + "!", "", "dev")])
    assert recipe.main([*options, "--never", str(tmp_path / "dev.jsonl")]) == 0
    assert sorted(said) == SENTENCES[1:]


def test_a_folder_of_other_sentences_is_left_as_it_is(recipe, said, options, tmp_path, capsys):
    assert recipe.main(options) == 0
    (tmp_path / "text.txt").write_text("\n".join(f"now {sentence}" for sentence in SENTENCES))
    said.clear()
    assert recipe.main(options) == 1
    assert "has other sentences" in capsys.readouterr().err
    assert not said


@pytest.mark.parametrize("part", ["2/2", "1", "-1/2", "a/b", "0/0"])
def test_wrong_parts_are_refused(recipe, options, part, capsys):
    with pytest.raises(SystemExit) as stop:
        recipe.main([*options, f"--part={part}"])
    assert stop.value.code == 2
    assert "must be I/N" in capsys.readouterr().err


def test_text_without_sentences_says_so(recipe, said, options, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("Too short.\n1 2 3 4 5\n")
    assert recipe.main(options) == 1
    assert "no sentence of 4 to 24 words" in capsys.readouterr().err


def test_without_the_engine_it_says_what_to_install(recipe, options, monkeypatch, capsys):
    def missing():
        raise ModuleNotFoundError("No module named 'hibari'")

    monkeypatch.setattr(voices, "Speaker", missing)
    assert recipe.main(options) == 1
    assert "hibari" in capsys.readouterr().err
