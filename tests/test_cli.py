"""The command line: what goes to standard output, what to standard error, and the exit status."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from samba_asr import __version__
from samba_asr.audio.load import load_audio
from samba_asr.cli import main
from samba_asr.subtitles import srt, vtt
from samba_asr.transcriber import Transcriber
from samba_asr.writers import tsv

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _default_model(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SAMBA_ASR_MODEL", str(tiny_checkpoint))


@pytest.fixture(scope="module")
def paths(clips):
    return [str(path) for path, _ in clips[:3]]


@pytest.fixture(scope="module")
def transcripts(tiny_checkpoint, paths):
    transcriber = Transcriber.load(tiny_checkpoint)
    return [transcriber.transcribe(path) for path in paths]


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("Not audio, whatever its name says.\n" * 20)
    return str(path)


def run(*arguments, **options):
    """Run transcribe.py as a person does."""
    command = [sys.executable, str(ROOT / "transcribe.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, **options)


def test_one_file_prints_its_words_and_nothing_else(paths, transcripts, tmp_path):
    done = run(paths[0], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, transcripts[0].text + "\n", "")


def test_several_files_print_path_tab_words_in_the_order_given(paths, transcripts, capsys):
    order = [2, 0, 1, 0]
    assert main([paths[i] for i in order]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{paths[i]}\t{transcripts[i].text}\n" for i in order)
    assert err == ""


def test_json_is_one_object_a_line(paths, transcripts, capsys):
    assert main(["--output-format", "json", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, path, transcript in zip(lines, paths, transcripts, strict=True):
        expected = {
            "path": path,
            "duration": transcript.duration,
            "text": transcript.text,
            "confidence": round(transcript.confidence, 3),
            "model": "tiny-random",
        }
        assert list(json.loads(line).items()) == list(expected.items())
    assert main(["--output-format", "json", paths[0]]) == 0
    assert capsys.readouterr().out.splitlines() == lines[:1]


def test_word_timestamps_in_json_are_a_list(paths, transcripts, capsys):
    assert main(["--output-format", "json", "--word-timestamps", paths[0]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["path", "duration", "text", "confidence", "segments", "words", "model"]
    assert found["words"] == transcripts[0].to_dict()["words"]
    assert found["segments"] == transcripts[0].to_dict()["segments"]
    assert [word["text"] for word in found["words"]] == found["text"].split()


def test_word_timestamps_in_txt_are_lines_below_the_words(paths, transcripts, tmp_path, capsys):
    def expected(transcript, before):
        lines = [f"{w.start:.3f}\t{w.end:.3f}\t{w.confidence:.3f}\t{w.text}" for w in transcript.words]
        return "".join(f"{before}{line}\n" for line in [transcript.text, *lines])

    assert main(["--word-timestamps", paths[0]]) == 0
    assert capsys.readouterr().out == expected(transcripts[0], "")
    assert main(["--word-timestamps", *paths[:2]]) == 0
    both = zip(transcripts, paths[:2], strict=False)
    assert capsys.readouterr().out == "".join(expected(transcript, f"{path}\t") for transcript, path in both)
    assert main(["--word-timestamps", "--output-dir", str(tmp_path), *paths[:2]]) == 0
    for path, transcript in zip(paths[:2], transcripts, strict=False):
        assert (tmp_path / f"{Path(path).stem}.txt").read_text() == expected(transcript, "")


def test_search_and_model_are_passed_on(tiny_checkpoint, paths, transcripts, capsys, monkeypatch):
    monkeypatch.delenv("SAMBA_ASR_MODEL")
    assert main(["--model", str(tiny_checkpoint), "--search", "autoregressive", paths[0]]) == 0
    expected = Transcriber.load(tiny_checkpoint, search="autoregressive").transcribe(paths[0]).text
    assert capsys.readouterr().out == expected + "\n" != transcripts[0].text + "\n"


def test_beam_size_is_passed_on(tiny_checkpoint, paths, capsys):
    expected = []
    for size in (1, 8):
        assert main(["--search", "rescoring", "--beam-size", str(size), paths[0]]) == 0
        transcriber = Transcriber.load(tiny_checkpoint, search="rescoring", beam_size=size)
        expected.append(transcriber.transcribe(paths[0]).text)
        assert capsys.readouterr().out == expected[-1] + "\n"
    assert expected[0] != expected[1]


def test_what_joint_search_is_told_is_passed_on(paths, capsys, monkeypatch):
    given = {}

    def load(model, device, search, **settings):
        given.update(settings, search=search)
        raise ValueError("enough")

    monkeypatch.setattr(Transcriber, "load", load)
    options = {
        "beam-size": 12,
        "ctc-weight": 0.25,
        "length-bonus": 0.75,
        "spelling-weight": 0.5,
        "lm": "some/lm",
        "lm-length-bonus": 1.25,
        "lm-weight": 0.125,
        "hotwords": "Nadezhda:2",
        "hotword-boost": 1.5,
        "lexicon": "some/words",
        "unknown-word-penalty": 3.5,
        "batch-size": 3,
        "precision": "bfloat16",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["--search", "joint", *arguments, paths[0]]) == 2
    named = {name.replace("-", "_"): value for name, value in options.items()}
    assert given == named | {"search": "joint", "vad": None}
    assert capsys.readouterr().err == "samba-asr: error: enough\n"


@pytest.mark.parametrize("several", [False, True])
def test_the_n_best_texts(tiny_checkpoint, paths, capsys, several):
    transcriber = Transcriber.load(tiny_checkpoint, search="joint", beam_size=6)
    chosen = paths[: 1 + several]
    transcripts = [transcriber.transcribe(path, n_best=3) for path in chosen]
    options = ["--search", "joint", "--beam-size", "6", "--nbest", "3"]
    assert main([*options, *chosen]) == 0
    prefixes = [f"{path}\t" if several else "" for path in chosen]
    expected = [
        f"{prefix}{line}\n"
        for prefix, transcript in zip(prefixes, transcripts, strict=True)
        for line in (transcript.text, *(f"{each.score:.3f}\t{each.text}" for each in transcript.n_best))
    ]
    assert capsys.readouterr().out == "".join(expected)
    assert main([*options, "-f", "json", *chosen]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["n_best"] for line in lines] == [[e.to_dict() for e in t.n_best] for t in transcripts]
    assert len(lines[0]["n_best"]) == 3 and "words" not in lines[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_a_path_never_breaks_its_line(paths, transcripts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a\tb\nc\rd\\e.mp3", "back\\slash.mp3"]
    for name in names:
        shutil.copy(paths[0], name)
    assert main(names) == 0
    text = transcripts[0].text
    assert capsys.readouterr().out == f"a\\tb\\nc\\rd\\\\e.mp3\t{text}\nback\\slash.mp3\t{text}\n"
    assert main(["--output-format", "json", *names]) == 0
    assert [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()] == names


@pytest.fixture
def all_sorts(clips, tmp_path):
    """Recordings of many lengths: clips, one of over a minute, half a second, silence; and two that are none."""
    waveforms = [load_audio(path) for path, _ in clips]
    gap = np.zeros(24_000, np.float32)
    made = {
        "long": np.concatenate([part for waveform in [*waveforms, *waveforms[::-1]] for part in (waveform, gap)]),
        "short": waveforms[0][30_000:38_000],
        "silent": np.zeros(20_000, np.float32),
    }
    for name, waveform in made.items():
        soundfile.write(tmp_path / f"{name}.wav", waveform, 16_000)
    (tmp_path / "text.wav").write_text("Not audio, whatever its name says.\n" * 20)
    names = [tmp_path / f"{name}.wav" for name in ("short", "text", "long", "missing", "silent")]
    paths = [path for path, _ in clips]
    return list(map(str, [*paths[:3], *names[:3], *paths[3:], *names[3:]]))


@pytest.mark.parametrize("search", ["ctc", "joint"])
def test_recordings_together_get_what_each_gets_alone(search, all_sorts, tmp_path, capsys):
    formats = ["-f", "txt", "-f", "srt", "-f", "json"]
    options = ["--search", search, "--word-timestamps"]
    alone = [main([*options, *formats, "--output-dir", str(tmp_path / "alone"), path]) for path in all_sorts]
    said = capsys.readouterr().err
    lines = "".join(f"{path}\t{line}\n" for path in all_sorts for line in written(tmp_path / "alone", path, ".txt"))
    for size in (1, 3):
        options += ["--batch-size", str(size)]
        out = tmp_path / f"together-{size}"
        assert main([*options, *formats, "--output-dir", str(out), *all_sorts]) == max(alone) == 1
        assert capsys.readouterr() == ("", said)
        assert len(list(out.iterdir())) == 3 * alone.count(0)
        for path in all_sorts:
            for ending in (".txt", ".srt", ".json"):
                assert written(out, path, ending) == written(tmp_path / "alone", path, ending)
        assert main([*options, *all_sorts]) == 1
        assert capsys.readouterr() == (lines, said)


def written(folder, path, ending):
    """Return the lines of a recording's output, none where it failed."""
    file = folder / f"{Path(path).stem}{ending}"
    return file.read_text().splitlines() if file.exists() else []


# Output folder


@pytest.mark.parametrize("extension", ["txt", "json"])
def test_output_dir_gets_one_file_an_input(paths, transcripts, tmp_path, capsys, extension):
    folder = tmp_path / "new" / "words"
    assert main(["--output-dir", str(folder), "--output-format", extension, *paths]) == 0
    assert capsys.readouterr() == ("", "")
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{Path(path).stem}.{extension}" for path in paths)
    for path, transcript in zip(paths, transcripts, strict=True):
        content = (folder / f"{Path(path).stem}.{extension}").read_text()
        assert content.endswith("\n")
        assert (content[:-1] if extension == "txt" else json.loads(content)["text"]) == transcript.text


def test_inputs_of_one_stem_never_share_an_output(paths, transcripts, tmp_path, capsys):
    inputs = []
    for folder, path in zip("abc", paths, strict=True):
        inputs.append(tmp_path / folder / f"talk{Path(path).suffix}")
        inputs[-1].parent.mkdir()
        inputs[-1].write_bytes(Path(path).read_bytes())
    out = tmp_path / "out"
    assert main(["--output-dir", str(out), *map(str, inputs)]) == 0
    texts = {file.name: file.read_text().strip() for file in out.iterdir()}
    assert texts == {f"talk{i}.txt": t.text for i, t in zip(("", "-2", "-3"), transcripts, strict=True)}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"samba-asr: {inputs[1]}: ")
    assert str(out / "talk-2.txt") in said[0]


def test_a_failed_input_leaves_no_output_and_no_rubbish(text_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--output-dir", str(out), text_file]) == 1
    assert list(out.iterdir()) == []


def test_an_output_that_cannot_be_written_fails_its_input_alone(paths, tmp_path, capsys):
    out = tmp_path / "out"
    (out / f"{Path(paths[0]).stem}.txt").mkdir(parents=True)
    assert main(["--output-dir", str(out), paths[1], paths[0]]) == 1
    assert capsys.readouterr().err.startswith(f"samba-asr: {paths[0]}: ")
    assert (out / f"{Path(paths[1]).stem}.txt").is_file()
    assert len(list(out.iterdir())) == 2


# Inputs


def test_standard_input_is_a_recording(paths, transcripts):
    with open(paths[0], "rb") as recording:
        done = run("-", stdin=recording)
    assert (done.returncode, done.stdout, done.stderr) == (0, transcripts[0].text + "\n", "")


def standard_input(monkeypatch, content, terminal=False):
    stream = io.TextIOWrapper(io.BytesIO(content))
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdin", stream)


def test_outputs_call_it_stdin(paths, transcripts, tmp_path, capsys, monkeypatch):
    standard_input(monkeypatch, Path(paths[0]).read_bytes())
    assert main(["-", paths[1]]) == 0
    assert capsys.readouterr().out == f"stdin\t{transcripts[0].text}\n{paths[1]}\t{transcripts[1].text}\n"
    standard_input(monkeypatch, Path(paths[0]).read_bytes())
    assert main(["-", "-f", "json", "--output-dir", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "stdin.json").read_text())["path"] == "stdin"


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty (0 bytes)"), (b"No sound. " * 100, "is not audio")])
def test_bad_standard_input_gets_one_clear_line(content, says, paths, transcripts, capsys, monkeypatch):
    standard_input(monkeypatch, content)
    assert main(["-", paths[0]]) == 1
    out, err = capsys.readouterr()
    assert out == f"{paths[0]}\t{transcripts[0].text}\n"
    assert err.startswith(f"samba-asr: stdin: {says}") and err.count("\n") == 1


def test_nobody_types_a_recording(monkeypatch, capsys):
    standard_input(monkeypatch, b"", terminal=True)
    assert main(["-"]) == 2
    assert "a terminal" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["-"]) == 2
    assert "is closed" in capsys.readouterr().err


def test_folders_and_patterns_stand_for_recordings(paths, transcripts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("talks/more").mkdir(parents=True)
    Path("none").mkdir()
    shutil.copy(paths[0], "talks/more/a.mp3")
    shutil.copy(paths[1], "talks/b.MP3")
    shutil.copy(paths[2], "c.mp3")
    assert main(["talks", "[a-c].mp3", "none", "*.wav"]) == 1
    out, err = capsys.readouterr()
    expected = {"talks/b.MP3": 1, "talks/more/a.mp3": 0, "c.mp3": 2}
    assert out == "".join(f"{path}\t{transcripts[i].text}\n" for path, i in expected.items())
    assert re.findall("samba-asr: (.*?): ", err) == ["none", "*.wav"]
    assert main(["talks/more"]) == 0  # as many as there are: a line has its path
    assert capsys.readouterr().out == f"talks/more/a.mp3\t{transcripts[0].text}\n"


# Formats


@pytest.mark.parametrize("name", ["srt", "vtt", "tsv"])
def test_subtitles_and_tables_are_the_whole_output(name, paths, transcripts, capsys):
    assert main(["-f", name, paths[0]]) == 0
    expected = {"srt": srt, "vtt": vtt, "tsv": lambda transcript: tsv(transcript, "", False)}[name](transcripts[0])
    assert capsys.readouterr() == (expected, "")
    assert "-->" in expected or name == "tsv"


def test_several_formats_are_several_files(paths, transcripts, tmp_path, capsys):
    formats = ("srt", "json", "txt", "vtt", "tsv", "srt")
    options = [option for name in formats for option in ("-f", name)]
    assert main([*options, "--output-dir", str(tmp_path), *paths[:2]]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(list(tmp_path.iterdir())) == 2 * 5
    for path, transcript in zip(paths, transcripts[:2], strict=False):
        assert (tmp_path / f"{Path(path).stem}.srt").read_text() == srt(transcript)
        assert (tmp_path / f"{Path(path).stem}.vtt").read_text() == vtt(transcript)
        assert json.loads((tmp_path / f"{Path(path).stem}.json").read_text())["path"] == path


def test_skip_existing_does_what_is_left(paths, transcripts, tmp_path, capsys):
    options = ["--output-dir", str(tmp_path), "-f", "txt", "-f", "json", "--skip-existing"]
    done, half, new = (Path(path).stem for path in paths)
    for name in (f"{done}.txt", f"{done}.json", f"{half}.txt"):
        (tmp_path / name).write_text("old")
    assert main([*options, *paths]) == 0
    assert capsys.readouterr() == ("", f"samba-asr: {paths[0]}: skipped, because its output exists\n")
    assert [(tmp_path / f"{stem}.txt").read_text() for stem in (done, half, new)] == [
        "old",
        *(f"{transcript.text}\n" for transcript in transcripts[1:]),
    ]
    assert (tmp_path / f"{half}.json").is_file() and (tmp_path / f"{done}.json").read_text() == "old"
    assert main([*options, "--quiet", *paths]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*options, "missing.wav", *paths]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "samba-asr: missing.wav: no such file"
    assert main([*options, "--model", "nonsense", *paths]) == 2


# How much is said


def test_quiet_says_nothing_but_errors(paths, transcripts, tmp_path, capsys, monkeypatch):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["--quiet", paths[0], "missing.wav", str(tmp_path / "silent.wav")]) == 1
    out, err = capsys.readouterr()
    assert out == f"{paths[0]}\t{transcripts[0].text}\n{tmp_path / 'silent.wav'}\t\n"
    assert err == "samba-asr: missing.wav: no such file\n"
    assert main(["-q", "--output-dir", str(tmp_path / "out"), paths[0], paths[0]]) == 0
    assert capsys.readouterr().err == ""


def test_verbose_says_what_runs_and_how_fast(paths, transcripts, capsys):
    assert main(["--verbose", *paths[:2]]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{path}\t{t.text}\n" for path, t in zip(paths, transcripts[:2], strict=False))
    first, second, *lines = err.splitlines()
    assert re.fullmatch(r"samba-asr: model tiny-random: \w+ search on cpu, float32, CPU threads: \d+", first)
    assert second == "samba-asr: long recordings: where silero-vad hears speech"
    for line, path, transcript in zip(lines, paths[:2], transcripts, strict=False):
        said = re.fullmatch(r"samba-asr: (.*): ([\d.]+) s in ([\d.]+) s, real-time factor ([\d.]+)", line)
        assert said[1] == path
        assert float(said[2]) == pytest.approx(transcript.duration, abs=0.01)
        assert float(said[4]) == pytest.approx(float(said[3]) / float(said[2]), abs=0.01)
    assert len(lines) == 2


def test_threads_are_as_many_as_asked_for(paths, transcripts, capsys):
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            assert main(["--threads", str(threads), "-v", paths[0]]) == 0
            assert torch.get_num_threads() == threads
            out, err = capsys.readouterr()
            assert out == transcripts[0].text + "\n"
            assert f"CPU threads: {threads}\n" in err
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def pause(clips, tmp_path):
    """Two clips with ten seconds of silence between them, 20 s in all."""
    first, second = (load_audio(path) for path, _ in clips[:2])
    soundfile.write(tmp_path / "pause.wav", np.concatenate([first, np.zeros(160_000, np.float32), second]), 16_000)
    return str(tmp_path / "pause.wav")


@pytest.mark.parametrize(("flags", "cut"), [([], False), (["--vad"], True), (["--no-vad"], False)])
def test_vad_leaves_silence_out(tiny_checkpoint, pause, flags, cut, capsys):
    """The default does where a recording is longer than 30 s."""
    expected = Transcriber.load(tiny_checkpoint, vad=cut).transcribe(pause).text
    other = Transcriber.load(tiny_checkpoint, vad=not cut).transcribe(pause).text
    assert main([*flags, "--batch-size", "1", "--model", str(tiny_checkpoint), pause]) == 0
    assert capsys.readouterr().out == expected + "\n" != other + "\n"


def test_no_vad_no_detector_and_one_that_is_missing(tiny_checkpoint, pause, monkeypatch, capsys):
    flags = ["--model", str(tiny_checkpoint), "-v", pause]
    assert main(["--no-vad", *flags]) == 0
    assert "long recordings: in one pass\n" in capsys.readouterr().err
    monkeypatch.setattr("samba_asr.audio.vad._weights", lambda: None)
    assert main(flags) == 0
    assert "long recordings: cut at their quietest places (pip install silero-vad" in capsys.readouterr().err
    assert main(["--vad", *flags]) == 2
    assert "pip install silero-vad" in capsys.readouterr().err


# Errors


def bad_files(tmp_path, text_file):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "folder").mkdir()
    return [str(tmp_path / "missing.wav"), str(tmp_path / "folder"), str(tmp_path / "empty.wav"), text_file]


def test_a_bad_file_gets_one_clear_line_and_stops_nothing(paths, transcripts, tmp_path, text_file, capsys):
    bad = bad_files(tmp_path, text_file)
    assert main([bad[0], paths[0], *bad[1:], paths[1]]) == 1
    out, err = capsys.readouterr()
    assert out == "".join(
        f"{path}\t{transcript.text}\n" for path, transcript in zip(paths[:2], transcripts, strict=False)
    )
    lines = err.splitlines()
    assert len(lines) == len(bad)
    for line, path, says in zip(lines, bad, ["no such file", "folder", "empty", "not audio"], strict=True):
        assert line.startswith(f"samba-asr: {path}: ")
        assert says in line
        assert line.count(path) == 1


def test_a_single_bad_file(tmp_path):
    done = run(tmp_path / "missing.wav")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"samba-asr: {tmp_path / 'missing.wav'}: no such file\n"


@pytest.mark.parametrize("make", ["short", "silent", "telephone"])
def test_unusual_sound_is_no_error(make, tmp_path, capsys):
    rate = 8_000 if make == "telephone" else 16_000
    noise = 0.1 * np.random.default_rng(0).standard_normal((int(0.05 * rate) if make == "short" else rate, 2))
    soundfile.write(tmp_path / "a.wav", 0 * noise if make == "silent" else noise, rate)
    assert main([str(tmp_path / "a.wav")]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n")
    assert len(out) < 100
    assert err == (f"samba-asr: {tmp_path / 'a.wav'}: is silent: every sample is zero\n" if make == "silent" else "")
    assert (out == "\n") == (make == "silent")


def test_a_damaged_file_gives_what_is_left_and_says_so(paths, tmp_path, capsys):
    soundfile.write(tmp_path / "whole.wav", 0.1 * np.random.default_rng(0).standard_normal(32_000), 16_000)
    cut = tmp_path / "cut.wav"
    cut.write_bytes((tmp_path / "whole.wav").read_bytes()[:20_000])
    status = main([str(cut)])
    out, err = capsys.readouterr()
    assert status == 0
    assert out.strip()
    assert all(line.startswith(f"samba-asr: {cut}: ") for line in err.splitlines())
    assert "Warning" not in err


@pytest.mark.parametrize("error", [RuntimeError("not enough\nmemory"), MemoryError()])
def test_a_file_that_the_model_cannot_take_stops_nothing(error, paths, transcripts, capsys, monkeypatch):
    heard = Transcriber._heard

    def failing(self, arrays, n_best):
        if any(len(array) == round(transcripts[0].duration * 16_000) for array in arrays):
            raise error
        return heard(self, arrays, n_best)

    monkeypatch.setattr(Transcriber, "_heard", failing)
    assert main(paths[:2]) == 1
    out, err = capsys.readouterr()
    assert out == f"{paths[1]}\t{transcripts[1].text}\n"
    assert err in (f"samba-asr: {paths[0]}: not enough memory\n", f"samba-asr: {paths[0]}: MemoryError\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "AUDIO"),
        (["--output-format", "pdf", "a.wav"], "json"),
        (["--search", "beam", "a.wav"], "autoregressive"),
        (["--mod", "x", "a.wav"], "--mod"),
        (["--nonsense", "a.wav"], "--nonsense"),
        (["--model", "nonsense", "a.wav"], "'nonsense'"),
        (["--device", "abacus", "a.wav"], "abacus"),
        (["--beam-size", "0", "a.wav"], "beam_size (0) must be positive"),
        (["--beam-size", "many", "a.wav"], "--beam-size"),
        (["--ctc-weight", "2", "a.wav"], "ctc_weight (2.0) must be in [0, 1]"),
        (["--nbest", "0", "a.wav"], "'0' must be a whole number"),
        (["--nbest", "3", "--search", "ctc", "a.wav"], "search ('ctc') must be 'joint' where n_best (3) is above 1"),
        (["--nbest", "9", "--search", "joint", "a.wav"], "n_best (9) must not exceed beam_size (8): widen the beam"),
        (["--hotwords", "gospel", "--search", "ctc", "a.wav"], "must be 'joint' where a language model or hotwords"),
        (["--hotwords", "a,,b", "--search", "joint", "a.wav"], "'' is no hotword; leave it out"),
        (["--hotwords", "no/where.txt", "--search", "joint", "a.wav"], "hotwords file no/where.txt is no file"),
        (["--lm", "nowhere", "--search", "joint", "a.wav"], "language model nowhere is neither"),
        (["--precision", "float16", "a.wav"], "'float32', 'bfloat16'"),
        (["--threads", "0", "a.wav"], "'0' must be a whole number"),
        (["--quiet", "--verbose", "a.wav"], "not allowed with"),
        (["-f", "srt", "-f", "json", "a.wav"], "several formats (srt, json) need --output-dir"),
        (["-f", "srt", "a.wav", "b.wav"], "srt of several recordings needs --output-dir"),
        (["-f", "vtt", "tests"], "vtt of several recordings needs --output-dir"),
        (["-f", "tsv", "*.wav"], "tsv of several recordings needs --output-dir"),
        (["--skip-existing", "a.wav"], "--skip-existing needs --output-dir"),
        (["-", "a.wav", "-"], "only once"),
    ],
)
def test_wrong_usage_is_status_2(arguments, says, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("samba-asr: error: ")


def test_a_broken_model_is_wrong_usage(tmp_path, paths, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["--model", str(tmp_path), paths[0]]) == 2
    assert capsys.readouterr().err.startswith("samba-asr: error: ")


def test_an_output_folder_that_cannot_be_is_wrong_usage(text_file, paths, capsys):
    for folder in (text_file, f"{text_file}/below"):
        assert main(["--output-dir", folder, paths[0]]) == 2
        assert folder in capsys.readouterr().err


def test_without_any_model_the_error_names_all_three_ways(tmp_path):
    """As after an installation outside a checkout: the package alone, nothing beside it."""
    shutil.copytree(ROOT / "samba_asr", tmp_path / "site" / "samba_asr", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "SAMBA_ASR_MODEL"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "samba_asr.cli", "a.wav"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(tmp_path / "site")},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    for way in ("--model", "SAMBA_ASR_MODEL", "pretrained/index.json"):
        assert way in done.stderr


# Streams


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert r"\t, \n, \r and \\" in out
    assert "memory does not grow with a recording's length" in out
    for word in (
        "examples",
        "SAMBA_ASR_MODEL",
        "pretrained",
        "exit status",
        "--output-dir",
        "autoregressive",
        "rescoring",
        "--word-timestamps",
        "-f srt",
        "--skip-existing",
        "stdin",
        "m4a",
        "--threads",
    ):
        assert word in out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"samba-asr {__version__}\n"


def test_help_takes_no_torch():
    code = """
import sys
from samba_asr.audio.load import load_audio
from samba_asr.cli import main
try:
    main(["--help"])
except SystemExit:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False"


def test_names_that_the_output_encoding_lacks(paths, transcripts, tmp_path):
    strange = tmp_path / "r\u00e9cit \u4e2d.mp3"
    strange.write_bytes(Path(paths[0]).read_bytes())
    done = run(strange, strange, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    line = f"{tmp_path}/r\\xe9cit \\u4e2d.mp3\t{transcripts[0].text}\n"
    assert done.stdout == 2 * line


def test_a_reader_that_stops_is_no_traceback(paths):
    with subprocess.Popen(
        [sys.executable, str(ROOT / "transcribe.py"), *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_traceback(paths):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / "transcribe.py"), paths[0]], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "samba-asr: standard output: No space left on device\n"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupt_is_no_traceback(paths):
    with subprocess.Popen(
        [sys.executable, str(ROOT / "transcribe.py"), *paths * 300],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    ) as process:
        assert process.stdout.readline().startswith(paths[0])
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 130


def test_progress_shows_on_a_terminal_for_several_files_only(paths, transcripts, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(paths[:1]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(paths) == 0
    out, err = capsys.readouterr()
    assert f"{len(paths)}/{len(paths)}" in err
    assert out == "".join(f"{path}\t{transcript.text}\n" for path, transcript in zip(paths, transcripts, strict=True))
