"""The benchmarks that run a checkpoint: what they measure on, what they print, what they refuse."""

import importlib.util
import os
import re
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from samba_asr.audio.load import load_audio
from samba_asr.ssm.native import load_kernels
from samba_asr.training.manifest import Utterance, read_manifest, write_manifest
from samba_asr.transcriber import Transcriber
from samba_asr.transcript import Word

FOLDER = Path(__file__).parent.parent / "benchmarks"


def loaded(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)  # as python does with the folder of the program it runs
        return _loaded(name)


def _loaded(name):
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def length():
    return loaded("length")


@pytest.fixture(scope="module")
def robustness():
    return loaded("robustness")


@pytest.fixture(scope="module")
def asr():
    return loaded("asr")


@pytest.fixture(scope="module")
def word_times():
    return loaded("word_times")


@pytest.fixture(scope="module")
def manifest(clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "clips.jsonl"
    made = [Utterance(str(audio), len(load_audio(audio)) / 16_000, text, "", "clips") for audio, text in clips[:3]]
    write_manifest(path, made)
    return path


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_joined_recordings_hold_every_word_and_pause(length):
    recordings = [length.Recording(np.full(n, n, np.float32), f"word{n}") for n in (40, 30, 20, 150, 10, 50)]
    found = length.joined(recordings, 10.0, 10)  # ten samples a second: a pause is three
    assert [r.text for r in found] == ["word40 word30 word20", "word150", "word10 word50"]
    pause = np.zeros(3)
    expected = np.concatenate([np.full(40, 40), pause, np.full(30, 30), pause, np.full(20, 20)])
    assert np.array_equal(found[0].waveform, expected)
    assert [len(r.waveform) for r in length.joined(recordings, 9.6, 10)] == [96, 150, 63]
    assert [len(r.waveform) for r in length.joined(recordings, 9.5, 10)] == [73, 20, 150, 63]


def test_length_prints_a_row_a_length(length, tiny_checkpoint, manifest, capsys):
    options = ["--model", str(tiny_checkpoint), "--manifest", str(manifest), "--seconds", "1", "10", "--total", "12"]
    assert length.main([*options, "--rounds", "1", "--search", "rescoring"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [cells(line) for line in lines[2:5]]
    assert [row[0] for row in rows] == ["one by one", "up to 1 s", "up to 10 s"]
    assert rows[0][1:3] == rows[1][1:3] and int(rows[2][1]) < int(rows[0][1])  # no clip is shorter than a second
    assert rows[0][5:7] == rows[1][5:7]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 and float(row[7]) > 100 for row in rows)


def test_length_with_voice_activity(length, tiny_checkpoint, manifest, capsys):
    options = ["--model", str(tiny_checkpoint), "--manifest", str(manifest), "--seconds", "10", "--total", "12"]
    assert length.main([*options, "--rounds", "1", "--search", "ctc", "--vad"]) == 0
    out = capsys.readouterr().out
    assert [cells(line)[3] for line in out.splitlines()[2:4]] == ["-", "-"]
    assert "silero-vad" in out.splitlines()[-1]


def test_length_says_what_is_missing(length, tiny_checkpoint, manifest, capsys):
    model = ["--model", str(tiny_checkpoint)]
    assert length.main([*model, "--manifest", str(manifest), "--seconds", "900"]) == 2
    assert "fewer than the 900 s wanted" in capsys.readouterr().err
    assert length.main([*model, "--manifest", "missing.jsonl"]) == 2
    assert "missing.jsonl does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        length.main([*model, "--manifest", str(manifest), "--seconds", "0"])
    assert stopped.value.code == 2


def test_texts_are_judged(robustness):
    counts = robustness.Counts()
    counts.add("a", "one two", "one two three four")
    assert counts == robustness.Counts(utterances=1)
    counts.add("b", "one two", "one two three four five")
    counts.add("c", "one two three", "one two two two two")
    counts.add("d", "", "word")
    assert (counts.utterances, counts.too_long, counts.repeating, len(counts.examples)) == (4, 2, 1, 3)


def test_the_sounds_are_what_they_are_called(robustness):
    sounds = robustness.sounds(4.0, 16_000)
    powers = {name: np.abs(np.fft.rfft(waveform)) ** 2 for name, waveform in sounds.items()}  # bins of 1/4 Hz
    for name, waveform in sounds.items():
        assert waveform.shape == (64_000,) and waveform.dtype == np.float32 and np.abs(waveform).max() < 1
        assert waveform.any() == (name != "silence")
    assert powers["440 Hz tone"].argmax() == 4 * 440
    white, pink = (
        [powers[n][4 * f : 8 * f].mean() for f in (250, 500, 1000, 2000)] for n in ("white noise", "pink noise")
    )
    assert np.allclose(np.diff(np.log2(white)), 0, atol=0.2)
    assert np.allclose(np.diff(np.log2(pink)), -1, atol=0.2)
    first = np.abs(np.fft.rfft(sounds["chords"][:32_000]))  # bins of 1/2 Hz: C, E and G
    assert {round(440 * 2 ** ((note - 69) / 12) * 2) for note in (60, 64, 67)} == set(first.argsort()[-3:].tolist())


def test_robustness_prints_both_tables(robustness, tiny_checkpoint, manifest, tmp_path, capsys):
    options = ["--model", str(tiny_checkpoint), "--manifests", str(manifest), "--seconds", "1", "--limit", "2"]
    assert robustness.main(options) == 0
    out = capsys.readouterr().out
    assert cells(out.splitlines()[4])[:3] == [str(manifest), "2", "0"]
    assert out.splitlines()[-6] == "| silence | 0 |  |"
    broken = tmp_path / "broken.jsonl"
    write_manifest(broken, [Utterance("nowhere.wav", 1.0, "a", "", "")])
    assert robustness.main([*options[:2], "--manifests", str(broken), "--seconds", "1"]) == 1
    assert robustness.main([*options[:2], "--manifests", "missing.jsonl"]) == 2
    assert "missing.jsonl does not exist" in capsys.readouterr().err


def test_joined_words_lie_where_it_says(word_times):
    rate = 1000
    loud = [np.full(n, 0.5, np.float32) for n in (120, 80, 200)]
    quiet = [np.pad(waveform, (30, 50), constant_values=0.001) for waveform in loud]
    assert [len(word_times.trimmed(waveform, rate)) for waveform in quiet] == [120, 80, 200]
    assert len(word_times.trimmed(np.zeros(40, np.float32), rate)) == 0
    made = word_times.joined(list(zip("abc", loud, strict=True)), rate, np.random.default_rng(0))
    edges = np.flatnonzero(np.diff((made.waveform > 0).astype(int), prepend=0, append=0)) / rate
    assert edges.tolist() == [seconds for word in made.words for seconds in (word.start, word.end)]
    gaps = np.diff([0, *edges, len(made.waveform) / rate])[::2]
    assert len(set(gaps)) == 4 and gaps.min() >= 0.25 and gaps.max() <= 0.6
    assert [word.text for word in made.words] == ["a", "b", "c"]


def test_times_are_compared_word_by_word(word_times):
    said = [Word(text, i, i + 0.5, 1.0) for i, text in enumerate(("One", "two", "three", "four"))]
    heard = [Word("one", 0.1, 0.4, 1.0), Word("tree", 1.0, 2.0, 1.0), Word("four", 2.9, 3.7, 1.0)]
    assert np.allclose(word_times.errors(said, heard), [(0.1, -0.1), (-0.1, 0.2)])
    table = word_times.table(np.array([(0.05, -0.07), (-0.15, 0.3), (0.02, 0.02)]), 4).splitlines()
    assert table[0] == "3 of 4 words recognised"
    assert cells(table[-2]) == ["starts", "+20", "50", "130", "66.7 %", "66.7 %", "100.0 %"]
    assert cells(table[-1])[:3] == ["ends", "+20", "70"]


def test_word_times_prints_its_table(word_times, tiny_checkpoint, manifest, capsys, monkeypatch):
    options = ["--model", str(tiny_checkpoint), "--manifest", str(manifest), "--words", "2"]
    assert word_times.main(options) == 1  # the clips are no single words
    assert "no word was recognised" in capsys.readouterr().err
    late = []

    def heard(self, waveform):
        late.append(len(waveform))
        return SimpleNamespace(words=[Word(read_manifest(manifest)[0].text, 1.25, 99.0, 1.0)])

    monkeypatch.setattr(Transcriber, "transcribe", heard)
    assert word_times.main(options) == 0
    assert len(late) == 2  # three recordings, two in one
    out = capsys.readouterr().out
    assert out.startswith("tiny-random, ctc: 1 of 3 words recognised")
    assert [cells(line)[0] for line in out.splitlines()[-2:]] == ["starts", "ends"]
    assert word_times.main([*options[:2], "--manifest", "missing.jsonl"]) == 2
    assert "missing.jsonl does not exist" in capsys.readouterr().err


def test_formats_prints_a_row_a_format(tiny_checkpoint, manifest, capsys, monkeypatch):
    formats = loaded("formats")
    options = ["--model", str(tiny_checkpoint), "--manifest", str(manifest)]
    assert formats.main([*options, "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiny-random, ctc, 2 recordings\n")
    rows = [cells(line) for line in out.splitlines()[4:]]
    assert [row[0] for row in rows] == list(formats.FORMATS)
    assert [row[1:3] for row in rows[:2]] == [["0", "0.00 %"]] * 2 and rows[0] == ["wav", *rows[1][1:]]
    assert all(float(row[2].split()[0]) > 0 for row in rows[2:4])  # random weights hear what the codecs do
    assert formats.main([*options[:2], "--manifest", "missing.jsonl"]) == 2
    assert "missing.jsonl does not exist" in capsys.readouterr().err
    monkeypatch.setattr(formats, "FORMATS", formats.FORMATS | {"flac": formats.FORMATS["mp3, 128 kbit/s"]})
    assert formats.main(options) == 1
    assert "3 recordings" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["a.flac", "a.mp3", "a.m4a", "b.wav"])
def test_formats_writes_what_it_says(file, clips, tmp_path):
    write = dict(loaded("formats").FORMATS.values())[file]
    samples = (load_audio(clips[0][0]) * 32767).astype(np.int16)
    write(tmp_path / file, samples, 16_000)
    with av.open(str(tmp_path / file)) as container:
        codec = container.streams.audio[0].codec_context
        assert codec.name.startswith({"a.flac": "flac", "a.mp3": "mp3", "a.m4a": "aac", "b.wav": "pcm_s16le"}[file])
        assert (codec.sample_rate, codec.channels) == ((44_100, 2) if file == "b.wav" else (16_000, 1))
        if file != "a.flac":
            rate = {"a.mp3": 128e3, "a.m4a": 64e3, "b.wav": 44_100 * 32}[file]
            assert 8 * container.size / (len(samples) / 16_000) == pytest.approx(rate, rel=0.15)
    heard = load_audio(tmp_path / file)
    assert len(samples) <= len(heard) < len(samples) + 1100
    assert np.corrcoef(samples, heard[: len(samples)])[0, 1] > 0.99  # nothing before it either


@pytest.fixture(scope="module")
def streaming():
    return loaded("streaming")


def test_streaming_prints_a_row_a_way_to_hear(streaming, tiny_checkpoint, manifest, capsys, monkeypatch):
    monkeypatch.setattr(streaming, "MINUTE", 2.0)
    options = ["--model", str(tiny_checkpoint), "--manifest", str(manifest), "--chunks", "0.64", "--stride", "2"]
    assert streaming.main([*options, "--minutes", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [cells(line) for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows] == [
        "heard",
        "whole",
        "0.64 s, no pause",
        "0.64 s, pauses of 0.7 s",
        *["minute", "1", "2", "3"],
    ]
    assert rows[1][3:9] == ["-"] * 6 and rows[1][1] == rows[2][1] == "2"
    for row in rows[2:4]:
        median, most = (float(row[4].split(", ")[i]) for i in (0, 2))
        assert 0 < median <= most <= 0.68  # what has to follow a state, and the block
        assert float(row[8]) > 0.01 and float(row[9]) > 0
    assert lines[-1] == "tiny-random, ctc search of finals, 2 utterances, 1 threads, reading files left out"
    assert streaming.main([*options[:4], "--chunks", "0.32+0.64", "--limit", "1", "--minutes", "0"]) == 0
    row = cells(capsys.readouterr().out.splitlines()[3])
    assert row[0] == "0.32 s and 0.64 s, no pause" and float(row[4].split(", ")[0]) > 0.6
    assert streaming.main([*options[:2], "--manifest", "missing.jsonl"]) == 2
    assert "missing.jsonl does not exist" in capsys.readouterr().err
    assert streaming.main([*options[:4], "--limit", "0", "--minutes", "60"]) == 2
    assert "too short for 60 minutes" in capsys.readouterr().err


def test_streaming_counts_from_what_was_fed(streaming):
    """Two segments, the first cut where words of the second were shown; a word is 1 s long."""

    def result(text, start, final):
        words = tuple(Word(word, start + i, start + i + 1, 1.0) for i, word in enumerate(text.split()))
        return SimpleNamespace(text=text, words=words, start=start, end=start + len(words), final=final)

    class Live:
        seconds, state_bytes, calls = 0.0, 0, 0
        given = (
            [result("a", 1.0, False)],  # fed 4 s
            [],
            [result("a b c", 1.0, False)],  # 12 s
            [result("x", 1.0, True), result("b c d", 2.0, False)],  # 16 s
            [result("b c e", 2.0, True)],
        )

        def feed(self, block):
            self.seconds += 4.0
            self.state_bytes += 100
            self.calls += 1
            return self.given[self.calls - 1]

        def finish(self):
            return self.given[-1]

    shift = SimpleNamespace(start_shift=-0.5)
    transcriber = SimpleNamespace(live=lambda **settings: Live(), sample_rate=50, words=shift)
    row = streaming.Row("", 0.64)
    streaming.hear(transcriber, np.zeros(4), row)
    assert row.texts == ["x b c e"] and row.segments == 2 and row.state == 400
    assert row.first == [4.0 - 1.5] and len(row.work) == 1
    assert row.words == [4 - 2, 12 - 3, 12 - 4, 16 - 5] and row.finals == [16 - 2, 16 - 5]
    assert row.audio == 4 / 50


def test_the_hour_begins_again_in_its_middle_and_at_its_end(streaming, monkeypatch):
    monkeypatch.setattr(streaming, "load_audio", lambda path, rate: np.full(int(path), float(path), np.float32))
    utterances = [Utterance(str(n), n / 10, "", "", "") for n in (250, 700, 30, 400, 650, 500, 900)]
    minutes = list(streaming.minutes_of(utterances, 5, 10))
    assert [len(minute) for minute in minutes] == [600] * 5
    assert np.array_equal(minutes[0], minutes[2]) and np.array_equal(minutes[0], minutes[4])
    gap = np.zeros(3)
    expected = np.concatenate([part for n in (250, 700, 30, 400, 650) for part in (np.full(n, n), gap)])[:1800]
    assert np.array_equal(np.concatenate([minutes[0], minutes[1], minutes[3]]), expected)
    with pytest.raises(ValueError, match="too short for 60 minutes"):
        list(streaming.minutes_of(utterances, 60, 10))


@pytest.mark.parametrize("name", ["length", "robustness", "word_times", "formats", "streaming"])
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        loaded(name).main(["--help"])
    assert stopped.value.code == 0
    assert re.search(rf"python benchmarks/{name}.py --m\w+ ", capsys.readouterr().out)


PEER = """
import os, sys
lines = open(sys.argv[2]).read().splitlines()
if sys.argv[1] == "broken":
    sys.exit("no such engine")
assert sys.argv[3:] == ["--threads", "1"] and all(len(line.split("\\t")) == 2 for line in lines)
assert not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) == 1
print(f"{sys.argv[1]} utterances={len(lines)} WER={10 * len(lines)}.00% RTF_wall=0.5000 RTF_cpu=0.1")
"""


def test_peers_stand_beside_ours(asr, tiny_checkpoint, manifest, tmp_path, capsys):
    (tmp_path / "peers.py").write_text(PEER)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    flags = ["--model", str(tiny_checkpoint), "--manifest", str(manifest), "--peers", str(tmp_path / "peers.py")]
    assert asr.main([*flags, "--limit", "2", "--rounds", "2", "--search", "ctc", "--engines", "other"]) == 0
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[0].split(", ")[-1] for row in rows] == ["ctc", "other"]
    assert rows[1][1:3] == ["20.0", "0.5000"] and rows[0][3] == "1.00"
    ours = 0.5 / float(rows[1][3])
    assert abs(ours - float(rows[0][2])) <= 1e-4  # what printing rounds away
    assert cores is None or os.sched_getaffinity(0) == cores
    with pytest.raises(SystemExit, match=r"broken .* gave no figures:\nno such engine"):
        asr.main([*flags, "--limit", "1", "--rounds", "1", "--search", "ctc", "--engines", "broken"])


def test_ours_are_timed_from_samples_to_words_on_one_core(asr, tiny_checkpoint, manifest, monkeypatch, capsys):
    """By a clock that a transcript moves by a second, its reading by a hundred, and the first of a round too."""
    clock, cores, heard = [0.0], os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}, []
    transcribe = Transcriber.transcribe

    def second(self, waveform):
        clock[0] += 1 if heard and heard[-1][0] == self else 50  # warm
        heard.append((self, len(waveform), *(os.sched_getaffinity(0) if len(cores) > 1 else cores)))
        transcript = transcribe(self, waveform)
        assert transcript.words[-1].end > 0
        return transcript

    def read(path):
        clock[0] += 100
        return load_audio(path)

    monkeypatch.setattr(Transcriber, "transcribe", second)
    monkeypatch.setattr(asr, "load_audio", read)
    monkeypatch.setattr(asr.time, "perf_counter", lambda: clock[0])
    searches = ["--search", "ctc", "joint"]
    assert asr.main(["--model", str(tiny_checkpoint), "--manifest", str(manifest), *searches]) == 0
    out = capsys.readouterr().out
    lengths = [len(load_audio(utterance.audio)) for utterance in read_manifest(manifest)]
    assert [length for _, length, *_ in heard] == 6 * [lengths[0], *lengths]  # three rounds of two
    turns = [one for (one, *_), (other, *_) in zip(heard, [(None,), *heard], strict=False) if one is not other]
    assert turns == turns[:2] * 3 and [turn.search.search for turn in turns[:2]] == ["ctc", "joint"]
    assert {each[2:] for each in heard} == {(min(cores),)}
    rows = [cells(line) for line in out.splitlines() if line.startswith("| tiny")]
    assert [row[0] for row in rows] == ["tiny-random, ctc", "tiny-random, joint, beam 8"]
    assert [row[2] for row in rows] == [f"{3 * 16_000 / sum(lengths):.4f}"] * 2
    assert not hasattr(os, "sched_getaffinity") or os.sched_getaffinity(0) == cores


def test_ours_are_the_model_s_own_way_unless_told(asr, tiny_checkpoint, manifest, monkeypatch, capsys):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    options = ["--model", str(tiny_checkpoint), "--manifest", str(manifest), "--rounds", "1", "--limit", "1"]
    assert asr.main(options) == 0
    *_, row, empty, last = capsys.readouterr().out.splitlines()
    assert (cells(row)[0], empty, last) == ("tiny-random, ctc", "", "This system moved them between its cores.")


def test_what_cannot_be_measured_beside_peers(asr, tiny_checkpoint, manifest, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    for flags, message in (
        (["--manifest", str(tmp_path / "none.jsonl")], "none.jsonl does not exist"),
        (["--manifest", str(tmp_path / "empty.jsonl")], "empty.jsonl holds no utterance"),
    ):
        assert asr.main(["--model", str(tiny_checkpoint), *flags]) == 2
        assert message in capsys.readouterr().err
    for flags, message in ((["--limit", "0"], "0 must be at least 1"), (["--engines", "x"], "--engines needs --peers")):
        with pytest.raises(SystemExit):
            asr.main(["--manifest", str(manifest), *flags])
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def scan_benchmark():
    return loaded("scan")


def test_scan_prints_a_row_a_size_and_a_column_a_contender(scan_benchmark, capsys):
    small = ["--batch", "1", "2", "--length", "3", "40", "--channels", "20", "--states", "4", "--seconds", "0.001"]
    assert scan_benchmark.main([*small, "--contenders", "reference", "torch", "plain loop", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    heads = [cells(line)[4:] for line in printed.splitlines() if line.startswith("| batch")]
    assert heads == [["reference", "torch", "plain loop"]] * 5  # time and memory of two passes, and the step
    rows = [cells(line) for line in printed.splitlines() if re.match(r"\| \d", line)]
    forward = [row[:4] for row in rows[:4]]
    assert forward == [["1", "3", "20", "4"], ["1", "40", "20", "4"], ["2", "3", "20", "4"], ["2", "40", "20", "4"]]
    assert len(rows) == 4 * 4 + 2
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+ %\)", cell) for row in rows[:4] for cell in row[4:])


def test_scan_leaves_out_what_does_not_fit(scan_benchmark, capsys):
    small = ["--batch", "1", "--length", "1000", "--channels", "64", "--states", "16", "--passes", "forward"]
    options = ["--contenders", "reference", "plain loop", "--seconds", "0.001", "--memory", "0.01"]
    assert scan_benchmark.main([*small, *options]) == 0
    row = next(cells(line) for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d", line))
    assert row[4].endswith("%)")
    assert row[5] == "- (0.011 GiB)"


def test_scan_calls_the_slow_once_and_spares_them_what_is_larger(scan_benchmark, capsys):
    small = ["--batch", "1", "2", "--length", "50", "--channels", "8", "--states", "4", "--passes", "forward"]
    options = ["--contenders", "reference", "torch", "--seconds", "0.001", "--patience", "0.000001"]
    assert scan_benchmark.main([*small, *options]) == 0
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d", line)]
    first, second = rows[:2]
    assert all(cell.endswith("%)") for cell in first[4:])
    assert second[4:] == ["- (slow)", "- (slow)"]


def test_scan_stops_where_results_differ(scan_benchmark, monkeypatch, capsys):
    import contenders

    plain_loop = contenders.plain_loop
    monkeypatch.setattr(contenders, "plain_loop", lambda *tensors: 1.01 * plain_loop(*tensors))
    small = ["--batch", "1", "--length", "5", "--channels", "4", "--states", "2", "--passes", "forward"]
    assert scan_benchmark.main([*small, "--contenders", "reference", "plain loop"]) == 1
    assert "plain loop differs from the first by 0.01" in capsys.readouterr().err


def test_scan_refuses_contenders_that_are_not_there(scan_benchmark, capsys):
    assert scan_benchmark.main(["--contenders", "cuda"]) == 2
    assert "--contenders: cuda cannot run here; there are: torch" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        scan_benchmark.main(["--batch", "0"])


def test_scan_counts_bytes_and_exponentials(scan_benchmark):
    size = scan_benchmark.Size(batch=2, length=3, channels=5, states=7)
    u, B, state = 2 * 3 * 5, 2 * 3 * 7, 2 * 5 * 7
    assert size.bytes_moved("forward") == 4 * (u + u + B + B + u)
    assert size.bytes_moved("both") == 4 * (5 * u + 3 * u + 2 * B + 2 * B + 2 * B)
    assert size.bytes_moved("step") == 4 * 2 * state
    assert [size.exponentials(which) for which in ("forward", "both", "step")] == [2 * 3 * 35, 2 * 2 * 3 * 35, 70]
    floor = scan_benchmark.Floor({7: 10.0}, 1e12)
    assert floor.seconds(size, "forward") == 21.0
    assert scan_benchmark.Floor({}, 8.0).seconds(size, "step") == 70.0


@pytest.mark.skipif(load_kernels() is None, reason="no C++ compiler")
def test_ssd_prints_a_row_a_size(capsys):
    small = ["--length", "20", "33", "--heads", "2", "--width", "16", "--states", "16", "--seconds", "0.001"]
    assert loaded("ssd").main([*small, "--batch", "1", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cells(lines[0])[6:8] == ["kernels, forward, ms", "kernels, forward and backward, ms"]
    rows = [cells(line) for line in lines if re.match(r"\| \d", line)]
    assert [row[:5] for row in rows] == [["1", "20", "2", "16", "16"], ["1", "33", "2", "16", "16"]]
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+x\)", cell) for row in rows for cell in row[6:])


def test_ssd_has_half_products_beside_others_in_bfloat16(capsys):
    small = ["--length", "20", "--heads", "2", "--width", "16", "--states", "16", "--seconds", "0.001"]
    assert loaded("ssd").main([*small, "--batch", "1", "--threads", "1", "--dtype", "bfloat16"]) == 0
    head = cells(capsys.readouterr().out.splitlines()[0])
    assert head[-4:] == [
        f"{name}, {which}, ms" for name in ("torch", "half") for which in ("forward", "forward and backward")
    ]
