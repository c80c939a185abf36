"""Manifest files."""

import dataclasses
import json
import os
import stat

import pytest

from samba_asr.training.manifest import Utterance, export_tsv, read_manifest, write_manifest

GOOD = {"audio": "a.wav", "duration": 1.5, "text": "hi", "speaker": "s", "corpus": "c"}


@pytest.fixture
def utterances(tmp_path) -> list[Utterance]:
    return [
        Utterance(str(tmp_path / "out" / "wavs" / "one.flac"), 1.25, "MISTER QUILTER'S", "1272", "librispeech"),
        Utterance("/elsewhere/zwei.mp3", 12, 'Grüße "an" alle\tund\nmehr\u2028', "", "commonvoice"),
    ]


def test_round_trip(tmp_path, utterances):
    path = tmp_path / "out" / "deep" / ".." / "train.jsonl"
    write_manifest(tmp_path / "out" / "train.jsonl", utterances)
    assert read_manifest(tmp_path / "out" / "train.jsonl") == utterances
    lines = [json.loads(line) for line in path.resolve().read_text("utf-8").split("\n")[:-1]]
    assert [line["audio"] for line in lines] == ["wavs/one.flac", "/elsewhere/zwei.mp3"]
    assert [list(line) for line in lines] == [["audio", "duration", "text", "speaker", "corpus"]] * 2
    assert "Grüße" in path.resolve().read_text("utf-8")


def test_relative_paths_follow_the_manifest(tmp_path, utterances, monkeypatch):
    write_manifest(tmp_path / "out" / "train.jsonl", utterances)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert read_manifest(tmp_path / "moved" / "train.jsonl")[0].audio == str(tmp_path / "moved/wavs/one.flac")
    monkeypatch.chdir(tmp_path)
    assert read_manifest("moved/train.jsonl")[0].audio == "moved/wavs/one.flac"
    write_manifest("relative.jsonl", utterances)
    assert json.loads((tmp_path / "relative.jsonl").read_text().splitlines()[0])["audio"] == "out/wavs/one.flac"


def test_hand_written(tmp_path):
    (tmp_path / "m.jsonl").write_text("\n" + json.dumps({**GOOD, "duration": 2}) + "\n\n" + json.dumps(GOOD))
    first, second = read_manifest(tmp_path / "m.jsonl")
    assert first == Utterance(str(tmp_path / "a.wav"), 2.0, "hi", "s", "c") and isinstance(first.duration, float)
    assert second.duration == 1.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        second.text = "no"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "needs exactly the keys audio, duration, text, speaker, corpus; found \\[1\\]"),
        (json.dumps({**GOOD, "txt": "x"}), "found audio, .*txt"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "speaker"}), "found audio, duration, text, corpus"),
        (json.dumps({**GOOD, "text": None}), "text \\(None\\) must be a string"),
        (json.dumps({**GOOD, "audio": 3}), "audio \\(3\\) must be a string"),
        (json.dumps({**GOOD, "audio": ""}), "audio must not be empty"),
        (json.dumps({**GOOD, "duration": "1"}), "duration \\('1'\\) must be a number"),
        (json.dumps({**GOOD, "duration": True}), "duration \\(True\\) must be a number"),
        (json.dumps({**GOOD, "duration": 0}), "duration \\(0\\) must be positive"),
        (json.dumps({**GOOD, "duration": float("nan")}), "duration \\(nan\\) must be positive"),
        (json.dumps({**GOOD, "duration": float("inf")}), "duration \\(inf\\) must be positive"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"m\.jsonl:2: .*{message}"):
        read_manifest(path)


def test_files_that_are_no_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl does not exist"):
        read_manifest(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"audio": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl: not UTF-8"):
        read_manifest(tmp_path / "latin.jsonl")


def test_writing_fails_whole(tmp_path, utterances):
    path = tmp_path / "m.jsonl"
    write_manifest(path, utterances[:1])
    before = path.read_bytes()

    def breaks():
        yield utterances[1]
        raise RuntimeError("disk on fire")

    for write in (write_manifest, export_tsv):
        with pytest.raises(RuntimeError, match="on fire"):
            write(path, breaks())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.jsonl"]


def test_written_files_have_the_usual_permissions(tmp_path, utterances):
    (tmp_path / "plain").write_text("")
    write_manifest(tmp_path / "m.jsonl", utterances)
    assert stat.S_IMODE((tmp_path / "m.jsonl").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_tsv(tmp_path, utterances):
    export_tsv(tmp_path / "new" / "m.tsv", utterances)
    assert (tmp_path / "new" / "m.tsv").read_text("utf-8") == (
        f'{utterances[0].audio}\tMISTER QUILTER\'S\n/elsewhere/zwei.mp3\tGrüße "an" alle und mehr\n'
    )
    with pytest.raises(ValueError, match="rename it"):
        export_tsv(tmp_path / "m.tsv", [dataclasses.replace(utterances[0], audio="a\tb.wav")])
