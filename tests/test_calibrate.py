"""The recipe's calibrate.py: what it prints, what it writes, what it refuses."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

from samba_asr.audio.load import load_audio
from samba_asr.training.manifest import Utterance, write_manifest
from samba_asr.transcriber import Transcriber

SCRIPT = Path(__file__).parent.parent / "recipes" / "librispeech" / "calibrate.py"


@pytest.fixture(scope="module")
def calibrate():
    spec = importlib.util.spec_from_file_location("calibrate_recipe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


@pytest.fixture
def manifest(tiny_checkpoint, tmp_path, clips):
    """Clips of two speakers whose texts are what the model hears, but for the words that it is least sure of."""
    transcriber = Transcriber.load(tiny_checkpoint)
    made = []
    for i, (path, _) in enumerate(clips):
        words = transcriber.transcribe(path).words
        least = min(word.confidence for word in words)
        said = [word.text if word.confidence > least else "zebra" for word in words]
        made.append(Utterance(str(path), len(load_audio(path)) / 16_000, " ".join(said), f"speaker {i % 2}", ""))
    write_manifest(tmp_path / "clips.jsonl", made)
    return tmp_path / "clips.jsonl"


def test_it_writes_two_numbers_and_nothing_else(calibrate, folder, manifest, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    options = ["--model", str(folder), "--manifests", str(manifest)]
    assert calibrate.main([*options, "--dry-run"]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    said = capsys.readouterr().out
    scale, bias = map(float, re.match(r"confidence_scale (\S+), confidence_bias (\S+)\n", said).groups())
    errors = [float(value) for value in re.findall(r"calibration error ([\d.]+)", said)]
    assert errors[1] < errors[0] and scale > 0
    assert calibrate.main(options) == 0
    assert capsys.readouterr().out == said
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"config.json"}
    old, new = json.loads(before["config.json"]), json.loads(after["config.json"])
    assert new["model"].pop("words") == old["model"].pop("words") | {
        "confidence_scale": scale,
        "confidence_bias": bias,
    }
    assert new == old
    assert calibrate.main(options) == 0  # from the raw confidences again
    assert capsys.readouterr().out == said


def test_no_speaker_serves_to_fit_and_to_measure(calibrate, folder, manifest, monkeypatch):
    asked, judge_all = [], calibrate.judge_all

    def spy(transcriber, utterances, speakers):
        asked.append((transcriber.words.confidence_scale, list(speakers)))
        return judge_all(transcriber, utterances, speakers)

    monkeypatch.setattr(calibrate, "judge_all", spy)
    assert calibrate.main(["--model", str(folder), "--manifests", str(manifest), "--dry-run"]) == 0
    assert asked[:2] == [(1.0, ["speaker 0"]), (1.0, ["speaker 1"])]
    assert asked[2][0] != 1.0 and asked[2][1] == ["speaker 1"]


def test_what_cannot_be_is_said(calibrate, folder, manifest, tmp_path, capsys):
    before = (folder / "config.json").read_bytes()
    model = ["--model", str(folder)]
    assert calibrate.main([*model, "--manifests", str(manifest), "--limit", "1"]) == 2
    assert "1 speaker: give two or more" in capsys.readouterr().err
    assert calibrate.main([*model, "--manifests", "missing.jsonl"]) == 2
    assert "missing.jsonl does not exist" in capsys.readouterr().err
    gone = [Utterance("gone.wav", 1.0, "a", speaker, "") for speaker in "ab"]
    write_manifest(tmp_path / "gone.jsonl", gone)
    assert calibrate.main([*model, "--manifests", str(tmp_path / "gone.jsonl")]) == 1
    assert "calibration needs right and wrong ones" in capsys.readouterr().err
    assert (folder / "config.json").read_bytes() == before


def test_a_limit_spreads(calibrate, manifest):
    whole = calibrate.read_utterances([manifest], None)
    assert calibrate.read_utterances([manifest], 3) == [whole[0], whole[len(whole) // 3], whole[2 * len(whole) // 3]]
    assert calibrate.read_utterances([manifest], 99) == whole
