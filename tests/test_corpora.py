"""Corpus scanning: every layout, made from the clips."""

import logging
import re
import shutil
from pathlib import Path

import pytest
import soundfile

from samba_asr.audio.load import load_audio
from samba_asr.training.corpora import corpus_name, detect_layout, find_corpora, hold_out, scan_corpus
from samba_asr.training.manifest import Utterance


def put(clip: Path, *targets: Path) -> None:
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def librispeech(tmp_path, clips) -> Path:
    root = tmp_path / "LibriSpeech"
    (mp3, words), opus = clips[0], clips[5][0]
    put(mp3, root / "train-clean-5/10/7/10-7-0000.mp3", root / "train-clean-5/9/7/9-7-0010.mp3")
    put(opus, root / "train-clean-5/9/7/9-7-0009.opus", root / "dev-clean/1/2/1-2-0000.opus")
    wav = load_audio(opus)
    soundfile.write(root / "train-clean-5/9/7/9-7-0011.flac", wav, 16_000)
    soundfile.write(root / "train-clean-5/9/7/9-7-0012.WAV", wav, 16_000)
    write(root / "train-clean-5/10/7/10-7.trans.txt", f"10-7-0000 {words}")
    write(root / "train-clean-5/9/7/9-7.trans.txt", "9-7-0012 L", "9-7-0011 K", "9-7-0010 J'S  OWN ", "", "9-7-0009 I")
    write(root / "dev-clean/1/2/1-2.trans.txt", "1-2-0000 DEV")
    (root / "README.TXT").write_text("hello")
    return root


@pytest.fixture
def common_voice(tmp_path, clips) -> Path:
    root = tmp_path / "cv-corpus-17" / "en"
    for name, (clip, _) in zip(("c2.mp3", "c10.mp3", "c3.mp3", "old.clip.mp3"), clips, strict=False):
        put(clip, root / "clips" / name)
    put(clips[5][0], root / "clips" / "re-encoded.opus")
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes"
    write(root / "train.tsv", header, 'abc\tc10.mp3\t1\t"Quoted", he said.\t2', "abd\tc2\t2\tNo ending\t1")
    write(root / "dev.tsv", header, "x\told.clip\t3\tDot in the name\t1", "y\tre-encoded.mp3\t4\tÜber\t0")
    for table in ("validated", "other", "invalidated"):
        write(root / f"{table}.tsv", header, "z\tc3.mp3\t5\tElsewhere\t2")
    write(root / "clip_durations.tsv", "clip\tduration[ms]", "c2.mp3\t1")
    return root


@pytest.fixture
def kaldi(tmp_path, clips) -> Path:
    root = tmp_path / "speechocean762"
    put(clips[0][0], root / "train/wav/u2.mp3", root / "WAVE/u10.mp3", tmp_path / "absolute.mp3")
    write(root / "train/wav.scp", "u10 WAVE/u10.mp3", "u2 ./wav/u2.mp3", f"u3\t{tmp_path}/absolute.mp3")
    write(root / "train/text", "u3 C", "u2  TWO  WORDS", "u10 A")
    write(root / "train/utt2spk", "u2 s2", "u10 s10")
    put(clips[5][0], root / "dev/with space.opus")
    write(root / "dev/wav.scp", "d with space.opus")
    write(root / "dev/text", "d D")
    return root


@pytest.fixture
def ljspeech(tmp_path, clips) -> Path:
    root = tmp_path / "LJSpeech-1.1"
    put(clips[-1][0], root / "wavs/LJ001-0001.opus", root / "wavs/LJ001-0010.opus")
    soundfile.write(root / "wavs/LJ001-0002.wav", load_audio(clips[0][0]), 16_000)
    write(
        root / "metadata.csv",
        'LJ001-0010|In 1450 "he"|In fourteen fifty "he"',
        "LJ001-0001|One|One",
        "LJ001-0002|two columns",
        "LJ001-0003|absent|absent",
    )
    return root


@pytest.fixture
def synthetic(tmp_path, clips) -> Path:
    root = tmp_path / "machine-voices"
    put(clips[5][0], *(root / f"{i}.opus" for i in (2, 10, 20)), root / "more/21.opus")
    write(root / "manifest.tsv", '10.opus\tTen, "quoted"\t{"pitch": 0.8, "speed": 1}', '2.opus\tTwo\t{"pitch": 1.2}')
    write(root / "manifest-0.tsv", '20.opus\tTwenty\t{"speed": 1, "pitch": 0.8}')
    write(root / "manifest-1.tsv", 'more/21.opus\tÜber\t{"pitch": 1.2}')
    write(root / "manifest-draft.tsv", '2.opus\tNot this one\t{"pitch": 1.2}')
    return root


def texts(split) -> list[str]:
    return [utterance.text for utterance in split.utterances]


def test_librispeech(librispeech, clips):
    dev, train = scan_corpus(librispeech)
    assert [(s.corpus, s.name, s.skipped) for s in (dev, train)] == [
        ("librispeech", "dev-clean", 0),
        ("librispeech", "train-clean-5", 0),
    ]
    assert texts(dev) == ["DEV"]
    assert texts(train) == ["I", "J'S  OWN", "K", "L", clips[0][1]]  # speaker 9 before speaker 10
    assert [u.speaker for u in train.utterances] == ["9", "9", "9", "9", "10"]
    assert {u.corpus for u in train.utterances} == {"librispeech"}
    assert [Path(u.audio).name for u in train.utterances][2:] == ["9-7-0011.flac", "9-7-0012.WAV", "10-7-0000.mp3"]
    for utterance in train.utterances:
        assert Path(utterance.audio).is_absolute()
        assert utterance.duration == pytest.approx(len(load_audio(utterance.audio)) / 16_000, abs=0.05)


def test_one_split_of_librispeech(librispeech, monkeypatch):
    (split,) = scan_corpus(librispeech / "dev-clean")
    assert (split.corpus, split.name, texts(split)) == ("librispeech", "dev-clean", ["DEV"])
    monkeypatch.chdir(librispeech / "dev-clean")
    assert scan_corpus(".") == [split]
    assert find_corpora(".") == [Path(".")]


def test_common_voice(common_voice):
    dev, train = scan_corpus(common_voice)
    assert [(s.corpus, s.name) for s in (dev, train)] == [("commonvoice", "dev"), ("commonvoice", "train")]
    assert [(Path(u.audio).name, u.text, u.speaker) for u in train.utterances] == [
        ("c2.mp3", "No ending", "abd"),
        ("c10.mp3", '"Quoted", he said.', "abc"),
    ]
    assert [(Path(u.audio).name, u.text) for u in dev.utterances] == [
        ("old.clip.mp3", "Dot in the name"),
        ("re-encoded.opus", "Über"),
    ]


def test_common_voice_validated_alone_is_train(common_voice):
    for name in ("train", "dev"):
        (common_voice / f"{name}.tsv").unlink()
    (split,) = scan_corpus(common_voice)
    assert (split.name, texts(split)) == ("train", ["Elsewhere"])


def test_common_voice_with_two_columns_and_windows_line_ends(common_voice):
    (common_voice / "train.tsv").write_bytes(b"\xef\xbb\xbfpath\tsentence\r\nclips/c2.mp3\tlast word\r\n")
    train = scan_corpus(common_voice)[1]
    assert [(u.text, u.speaker) for u in train.utterances] == [("last word", "")]


def test_kaldi(kaldi, tmp_path):
    dev, train = scan_corpus(kaldi)
    assert [(s.corpus, s.name) for s in (dev, train)] == [("speechocean762", "dev"), ("speechocean762", "train")]
    assert {(u.audio, u.text, u.speaker) for u in train.utterances} == {
        (str(kaldi / "train/wav/u2.mp3"), "TWO  WORDS", "s2"),
        (str(kaldi / "WAVE/u10.mp3"), "A", "s10"),
        (str(tmp_path / "absolute.mp3"), "C", ""),
    }
    assert [(Path(u.audio).name, u.speaker) for u in dev.utterances] == [("with space.opus", "")]


def test_lone_kaldi_folders(kaldi):
    (split,) = scan_corpus(kaldi / "dev")
    assert (split.corpus, split.name) == ("speechocean762", "dev")
    (kaldi / "dev").rename(kaldi.parent / "my-recordings")
    (split,) = scan_corpus(kaldi.parent / "my-recordings")
    assert (split.corpus, split.name) == ("my-recordings", "train")


def test_ljspeech(ljspeech, caplog):
    (split,) = scan_corpus(ljspeech)
    assert (split.corpus, split.name, split.skipped) == ("ljspeech", "train", 1)
    assert [(Path(u.audio).name, u.text, u.speaker) for u in split.utterances] == [
        ("LJ001-0001.opus", "One", "LJ"),
        ("LJ001-0002.wav", "two columns", "LJ"),
        ("LJ001-0010.opus", 'In fourteen fifty "he"', "LJ"),
    ]
    assert "metadata.csv:4 (LJ001-0003): audio is missing" in caplog.text
    assert "ljspeech train: skipped 1 of 4 utterances" in caplog.text


def test_synthetic(synthetic):
    (split,) = scan_corpus(synthetic)
    assert (split.corpus, split.name, split.skipped) == ("synthetic-machine-voices", "train", 0)
    found = [(str(Path(u.audio).relative_to(synthetic)), u.text) for u in split.utterances]
    assert found == [("2.opus", "Two"), ("10.opus", 'Ten, "quoted"'), ("20.opus", "Twenty"), ("more/21.opus", "Über")]
    low, high = split.utterances[1].speaker, split.utterances[0].speaker
    assert [u.speaker for u in split.utterances] == [high, low, low, high] and low != high
    assert all(re.fullmatch(r"voice-[0-9a-f]{12}", name) for name in (low, high))
    (synthetic / "manifest.tsv").unlink()
    assert [texts(split) for split in scan_corpus(synthetic)] == [["Twenty", "Über"]]


@pytest.mark.parametrize(
    "cut", [b"2.op", b"2.opus\tTw", b"2.opus\tTwo \xc3", b"2.opus\tTwo\t", b'2.opus\tTwo\t{"pitch": 1.']
)
def test_synthetic_speech_that_is_still_being_written(synthetic, cut, caplog):
    (synthetic / "manifest.tsv").write_bytes(b'10.opus\tTen\t{"pitch": 1}\n3.opus\tNot yet\t{"pitch": 1}\n' + cut)
    (split,) = scan_corpus(synthetic)
    assert texts(split) == ["Ten", "Twenty", "Über"] and split.skipped == 2
    assert "manifest.tsv:2 (3.opus): audio is missing" in caplog.text
    assert "manifest.tsv:3 (2.op" in caplog.text and "is it cut?" in caplog.text
    assert "synthetic-machine-voices train: skipped 2 of 5 utterances" in caplog.text


def test_the_later_of_two_lines_for_one_synthetic_recording_counts(synthetic, caplog):
    with (synthetic / "manifest-1.tsv").open("a") as file:
        file.write('2.opus\tTwo again\t{"pitch": 1.3}\n2.opus\tA third ti')
    (split,) = scan_corpus(synthetic)
    assert texts(split) == ["Two again", 'Ten, "quoted"', "Twenty", "Über"] and split.skipped == 2
    assert "manifest.tsv:2 (2.opus): manifest-1.tsv:2 has it again" in caplog.text


def test_other_tables_are_no_synthetic_speech(tmp_path):
    for line in ("path\ttext\tvoice", "a.wav\ttext", 'a.wav\ttext\t"amy"', 'a.wav\ttext\t{"pitch": 1}\tmore', ""):
        write(tmp_path / "manifest.tsv", line)
        assert detect_layout(tmp_path) is None, line


def test_layouts_are_told_apart(librispeech, common_voice, kaldi, ljspeech, synthetic, tmp_path):
    assert detect_layout(librispeech) == detect_layout(librispeech / "dev-clean") == "librispeech"
    assert detect_layout(common_voice) == "common-voice"
    assert detect_layout(kaldi) == detect_layout(kaldi / "train") == "kaldi"
    assert detect_layout(ljspeech) == "ljspeech"
    assert detect_layout(synthetic) == "synthetic"
    for folder in (tmp_path, librispeech / "dev-clean/1", common_voice / "clips", common_voice.parent, kaldi / "WAVE"):
        assert detect_layout(folder) is None
    assert find_corpora(tmp_path) == [ljspeech, librispeech, common_voice, synthetic, kaldi]
    for corpus in find_corpora(tmp_path):
        assert find_corpora(corpus) == [corpus]
        assert scan_corpus(corpus, detect_layout(corpus)) == scan_corpus(corpus)
        assert scan_corpus(corpus)[0].corpus == corpus_name(corpus)


def test_corpora_beside_bare_splits(librispeech, kaldi, ljspeech, tmp_path):
    (librispeech / "dev-clean").rename(tmp_path / "dev-clean")
    (kaldi / "train").rename(tmp_path / "train")
    found = find_corpora(tmp_path)
    assert tmp_path in found and {ljspeech, librispeech, kaldi} <= set(found)


def test_what_cannot_be_used_is_reported(librispeech, caplog):
    chapter = librispeech / "dev-clean/1/2"
    (chapter / "1-2-0001.flac").write_text("not audio")
    (chapter / "1-2-0002.flac").write_bytes(b"")
    (chapter / "1-2-0003.txt").write_text("no audio by its ending")
    put(chapter / "1-2-0000.opus", chapter / "1-2-0004.opus", chapter / "1-2-0005.opus")
    write(
        chapter / "1-2.trans.txt",
        "1-2-0000 DEV",
        "1-2-0001 BAD",
        "1-2-0002 EMPTY",
        "1-2-0003 ABSENT",
        "1-2-0004",
        "1-2-0005 ...",
    )
    dev, _ = scan_corpus(librispeech)
    assert texts(dev) == ["DEV"] and dev.skipped == 5
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 6 and lines[-1] == "librispeech dev-clean: skipped 5 of 6 utterances"
    for number, reason in ((2, "1-2-0001.flac"), (3, "empty"), (4, "missing"), (5, "no words"), (6, "no words")):
        assert any(f"1-2.trans.txt:{number} " in line and reason in line for line in lines)


def test_many_problems_are_counted(librispeech, caplog):
    lines = [f"1-2-{i:04} X" for i in range(30)]
    write(librispeech / "dev-clean/1/2/1-2.trans.txt", *lines)
    assert scan_corpus(librispeech)[0].skipped == 29
    assert len(caplog.records) == 12
    assert caplog.records[-2].getMessage() == "librispeech dev-clean: ... and 19 more"


def test_a_split_without_any_audio_is_left_out(librispeech, caplog):
    (librispeech / "dev-clean/1/2/1-2-0000.opus").unlink()
    assert [split.name for split in scan_corpus(librispeech)] == ["train-clean-5"]
    assert "librispeech dev-clean: skipped 1 of 1 utterances" in caplog.text


def test_the_first_ending_wins(librispeech, clips):
    put(clips[0][0], librispeech / "dev-clean/1/2/1-2-0000.mp3", librispeech / "dev-clean/1/2/1-2-0000.json")
    (split,) = scan_corpus(librispeech / "dev-clean")
    assert [Path(u.audio).suffix for u in split.utterances] == [".opus"]


def test_user_errors(librispeech, common_voice, kaldi, ljspeech, tmp_path):
    for function in (find_corpora, scan_corpus):
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            function(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has none of the layouts librispeech, common-voice, kaldi, ljspeech"):
        scan_corpus(tmp_path)
    with pytest.raises(ValueError, match=r"layout \('timit'\) must be one of 'librispeech'"):
        scan_corpus(librispeech, "timit")
    with pytest.raises(ValueError, match="holds nothing of the layout 'common-voice'"):
        scan_corpus(librispeech, "common-voice")

    write(ljspeech / "metadata.csv", "LJ001-0001|One|One", "no bars")
    with pytest.raises(ValueError, match=r"metadata\.csv:2: must read ID\|text"):
        scan_corpus(ljspeech)
    (ljspeech / "metadata.csv").write_bytes(b"LJ001-0001|caf\xe9|x\n")
    with pytest.raises(ValueError, match=r"metadata\.csv: not UTF-8"):
        scan_corpus(ljspeech)
    write(common_voice / "train.tsv", "path\tsentence", "c2.mp3")
    with pytest.raises(ValueError, match=r"train\.tsv:2: 1 columns, the header has 2"):
        scan_corpus(common_voice)


def test_kaldi_errors(kaldi):
    scp = (kaldi / "train/wav.scp").read_text()
    write(kaldi / "train/wav.scp", "u2 sph2pipe -f wav u2.sph |")
    with pytest.raises(ValueError, match=r"wav\.scp: u2 is a command .*write its output to a file"):
        scan_corpus(kaldi)
    write(kaldi / "train/wav.scp", "u2 a.wav", "u2 b.wav")
    with pytest.raises(ValueError, match=r"wav\.scp:2: utterance u2 is there twice"):
        scan_corpus(kaldi)
    (kaldi / "train/wav.scp").write_text(scp)
    write(kaldi / "train/segments", "u2-1 u2 0.0 1.0")
    with pytest.raises(ValueError, match="segments are not read"):
        scan_corpus(kaldi)
    (kaldi / "train/segments").unlink()
    (kaldi / "train/text").unlink()
    with pytest.raises(FileNotFoundError, match=r"has a wav\.scp but no text file"):
        scan_corpus(kaldi)


def test_kaldi_tables_that_disagree(kaldi, caplog):
    write(kaldi / "train/text", "u2 TWO", "ghost BOO")
    _, train = scan_corpus(kaldi)
    assert texts(train) == ["TWO"] and train.skipped == 3
    assert "train/ghost: audio is missing" in caplog.text and "train/u10: no words" in caplog.text


def make(count: int, speakers: int, repeat: int = 1) -> list[Utterance]:
    return [Utterance(f"/{i}.wav", 1.0 + i % 3, f"text {i // repeat}", f"s{i % speakers}", "c") for i in range(count)]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_hold_out_by_speaker(share):
    utterances = make(400, speakers=40)
    train, dev = hold_out(utterances, share)
    assert sorted(train + dev, key=utterances.index) == utterances
    assert train == [u for u in utterances if u in train]  # order kept
    assert not {u.speaker for u in train} & {u.speaker for u in dev}
    held = sum(u.duration for u in dev) / sum(u.duration for u in utterances)
    assert share / 2 <= held <= share
    assert hold_out(utterances, share) == (train, dev)


def test_hold_out_by_text_where_speakers_are_too_few():
    utterances = make(300, speakers=2, repeat=3)
    train, dev = hold_out(utterances, 0.1)
    assert len(train) + len(dev) == 300 and dev
    assert not {u.text for u in train} & {u.text for u in dev}
    assert {u.speaker for u in dev} == {"s0", "s1"}


def test_hold_out_by_text_where_one_speaker_has_nearly_all():
    utterances = [*make(99, speakers=1), Utterance("/last.wav", 1.0, "last", "guest", "c")]
    _, dev = hold_out(utterances, 0.2)
    assert len(dev) > 10


def test_hold_out_nothing():
    utterances = make(10, speakers=2)
    assert hold_out(utterances, 0.0) == (utterances, [])
    assert hold_out(utterances, 0.01) == (utterances, [])
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="must be in"):
            hold_out(utterances, share)
