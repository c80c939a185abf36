"""samba-asr mic: finals on standard output, what is heard so far on a terminal's last line, and what can go wrong."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from samba_asr import live, mic
from samba_asr.audio import microphone
from samba_asr.audio.load import load_audio
from samba_asr.audio.microphone import Microphone, microphones
from samba_asr.cli import main
from samba_asr.live import LiveResult
from samba_asr.transcriber import Transcriber
from samba_asr.transcript import Transcript
from samba_asr.writers import txt

ROOT = Path(__file__).parent.parent
RATE = 16_000


class PortAudioError(Exception):
    pass


class FakeSoundDevice:
    """What of sounddevice a microphone uses: devices, of which two record, and streams that play a waveform in."""

    PortAudioError = PortAudioError
    devices = (("speaker", 0, 48_000.0), ("built-in", 2, 44_100.0), ("USB one", 1, 48_000.0))

    def __init__(self, waveform, rates=(16_000, 44_100, 48_000), ends=None):
        self.waveform, self.rates, self.ends = waveform, rates, ends
        self.default = SimpleNamespace(device=[1, 0])
        self.opened, self.closed = None, 0
        self.busy = self.overflow = False

    def query_devices(self, device=None, kind=None):
        found = [{"name": n, "max_input_channels": c, "default_samplerate": r} for n, c, r in self.devices]
        if kind is None:
            return found
        device = 1 if device is None else device
        if isinstance(device, int):
            if device >= len(found):
                raise PortAudioError(f"Error querying device {device}")
            return found[device]
        matching = [each for each in found if device.lower() in each["name"].lower()]
        if len(matching) != 1:
            raise ValueError(f"No {kind} device matching {device!r}")
        return matching[0]

    def check_input_settings(self, samplerate, **form):
        if samplerate not in self.rates:
            raise PortAudioError("Invalid sample rate")

    def InputStream(self, samplerate, blocksize, callback, finished_callback, **form):
        if self.busy:
            raise PortAudioError("Device unavailable")
        self.opened = {"samplerate": samplerate, **form}

        def play():
            block = np.empty((blocksize, 1), np.float32)
            for start in range(0, len(self.waveform), blocksize):
                samples = self.waveform[start : start + blocksize]
                block[: len(samples), 0] = samples  # PortAudio's own memory, used again
                status = SimpleNamespace(input_overflow=self.overflow and start > 0)
                callback(block[: len(samples)], len(samples), None, status)
            block[:] = np.nan
            (self.ends or finished_callback)()

        def close():
            self.closed += 1
            finished_callback()

        return SimpleNamespace(start=lambda: threading.Thread(target=play).start(), close=close)


@pytest.fixture(autouse=True)
def _defaults(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SAMBA_ASR_MODEL", str(tiny_checkpoint))
    threads = torch.get_num_threads()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
    yield
    signal.signal(signal.SIGINT, before)
    torch.set_num_threads(threads)


@pytest.fixture
def install(monkeypatch):
    """Put a fake in sounddevice's place."""

    def installed(fake):
        monkeypatch.setitem(sys.modules, "sounddevice", fake)
        return fake

    return installed


@pytest.fixture(scope="module")
def waveform(clips):
    return np.concatenate([load_audio(clips[0][0])[: 4 * RATE], np.zeros(RATE, np.float32)])


@pytest.fixture(scope="module")
def results(tiny_checkpoint, waveform):
    return list(Transcriber.load(tiny_checkpoint).stream([waveform]))


def finals(results):
    return "".join(f"{result.text}\n" for result in results if result.final)


def interrupt():
    """Ctrl-C. os.kill may give it to another thread, and go on in this one before Python has heard of it."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGINT)


# Words


def test_finals_go_to_standard_output_and_nothing_else(install, waveform, results, capsys):
    fake = install(FakeSoundDevice(waveform))
    assert main(["mic"]) == 0
    assert capsys.readouterr() == (finals(results), "")
    assert fake.opened == {"samplerate": RATE, "device": None, "channels": 1, "dtype": "float32"} and fake.closed == 1
    assert len(results) > 3


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_with_the_last_final(install, waveform, results, capsys):
    before = signal.getsignal(signal.SIGINT)
    fake = install(FakeSoundDevice(waveform, ends=interrupt))
    assert main(["mic"]) == 0
    assert capsys.readouterr() == (finals(results), "")
    assert fake.closed == 1 and signal.getsignal(signal.SIGINT) == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_second_ctrl_c_is_not_waited_for(install, waveform, capsys, monkeypatch):
    fake = install(FakeSoundDevice(waveform, ends=interrupt))
    monkeypatch.setattr("samba_asr.live.Live.finish", lambda stream: interrupt())
    assert main(["mic"]) == 130
    assert fake.closed == 1


def test_what_is_heard_so_far_is_rewritten_on_a_terminal(install, waveform, results, capsys, monkeypatch):
    install(FakeSoundDevice(waveform))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((40, 20)))
    assert main(["mic"]) == 0
    out, err = capsys.readouterr()
    assert out == finals(results)
    first, _, lines = err.partition("\n")
    assert first == "samba-asr: built-in: speak; Ctrl-C ends"
    shown, cleared = lines.split("\r")[1:], ""
    assert cleared == shown[-1] and not shown[-2].strip()
    partials = [result.text for result in results if not result.final]
    expected = [text if len(text) < 40 else f"...{text[-36:]}" for text in partials]
    assert [line.rstrip() for line in shown if line.strip()] == expected
    assert any(line.startswith("...") for line in expected) and max(map(len, shown)) == 39
    for one, other in itertools.pairwise(shown):
        assert len(other) >= len(one.rstrip()) or not other  # nothing of the line before is left
    assert main(["mic", "--quiet"]) == 0
    assert capsys.readouterr() == (finals(results), "")


def test_a_line_that_gets_shorter_leaves_nothing_of_the_longer_one(capsys):
    screen = mic._Screen(word_timestamps=False, rewrites=True)
    for text, final in (("what was", False), ("was", False), ("it", True), ("", True)):
        screen.show([LiveResult(text, 0.0, 1.0, (), final)])
    assert capsys.readouterr() == ("it\n", "\rwhat was\rwas     \r   \r")


def test_a_file_is_heard_like_a_microphone(waveform, results, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", waveform, RATE)
    stored = list(Transcriber.load().stream([load_audio(tmp_path / "a.wav")]))
    assert main(["mic", "--file", str(tmp_path / "a.wav")]) == 0
    assert capsys.readouterr() == (finals(stored), "")
    assert main(["mic", "--file", str(tmp_path / "a.wav"), "--word-timestamps"]) == 0
    last = stored[-1]
    assert capsys.readouterr().out.endswith(txt(Transcript(last.text, last.end, "", last.words), "", True))


def test_settings_are_passed_on(waveform, tmp_path, capsys, tiny_checkpoint):
    soundfile.write(tmp_path / "a.wav", waveform, RATE)
    options = ["--chunk-seconds", "0.64", "--ahead-seconds", "0.16", "--pause-seconds", "0.3"]
    options += ["--no-vad", "--search", "joint", "--beam-size", "3"]
    assert main(["mic", "--file", str(tmp_path / "a.wav"), *options]) == 0
    transcriber = Transcriber.load(tiny_checkpoint, search="joint", beam_size=3, vad=False)
    stored = [load_audio(tmp_path / "a.wav")]
    found = finals(transcriber.stream(stored, chunk_seconds=0.64, ahead_seconds=0.16, pause_seconds=0.3))
    assert capsys.readouterr().out == found != finals(Transcriber.load().stream(stored))


def test_the_defaults_are_the_transcriber_s():
    """Which the command line cannot import before it knows that it needs PyTorch."""
    defaults = mic._parser().parse_args([])
    given = (defaults.chunk_seconds, defaults.ahead_seconds, defaults.pause_seconds)
    assert given == (live.CHUNK_SECONDS, live.AHEAD_SECONDS, live.PAUSE_SECONDS)


def test_a_microphone_without_that_rate_is_resampled(install, waveform):
    fake = install(FakeSoundDevice(soxr.resample(waveform, RATE, 48_000), rates=(48_000,)))
    blocks = list(Microphone("usb"))
    assert fake.opened["samplerate"] == 48_000 and fake.opened["device"] == "usb"
    heard = np.concatenate(blocks)
    assert heard.dtype == np.float32 and abs(len(heard) - len(waveform)) < 10
    assert np.abs(heard[: len(waveform)] - waveform[: len(heard)]).max() < 0.02
    assert len(blocks) > 50


def test_devices_are_listed_and_chosen(install, waveform, capsys):
    fake = install(FakeSoundDevice(waveform[:0]))
    assert main(["mic", "--list-devices"]) == 0
    assert capsys.readouterr() == ("1\tbuilt-in (default)\n2\tUSB one\n", "")
    assert microphones() == ["1\tbuilt-in (default)", "2\tUSB one"]
    assert main(["mic", "--device-name", "2"]) == 0
    assert fake.opened["device"] == 2 and capsys.readouterr() == ("", "")
    assert Microphone("USB").name == "USB one"


def test_a_microphone_that_says_nothing_can_be_stopped(install, waveform, monkeypatch):
    monkeypatch.setattr(microphone, "_WAIT", 0.01)
    install(FakeSoundDevice(waveform[:0], ends=lambda: None))
    source = Microphone()
    threading.Timer(0.1, source.stop).start()
    assert list(source) == []


# Errors


def wrong(argv, capsys):
    """The line that wrong usage gives."""
    try:
        status = main(["mic", *argv])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("samba-asr") and "error: " in err
    return err.splitlines()[-1]


def test_a_missing_package_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # importing it fails
    assert "pip install 'samba-asr[mic]'" in wrong([], capsys)
    assert "pip install 'samba-asr[mic]'" in wrong(["--list-devices"], capsys)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("OSError('PortAudio library not found')", "(PortAudio library not found): sudo apt install libportaudio2"),
        ("RuntimeError('Error initializing PortAudio')", "does not start here (Error initializing PortAudio)"),
    ],
)
def test_a_missing_library_says_how_to_get_it(error, says, monkeypatch, capsys, tmp_path):
    (tmp_path / "sounddevice.py").write_text(f"raise {error}")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert says in wrong([], capsys)


@pytest.mark.parametrize(("name", "says"), [("piano", "no microphone 'piano' (No input device"), ("7", "'7' (Error")])
def test_a_missing_microphone_says_how_to_see_the_others(install, waveform, name, says, capsys):
    install(FakeSoundDevice(waveform))
    line = wrong(["--device-name", name], capsys)
    assert says in line and "--list-devices" in line


def test_a_machine_without_microphone_and_one_that_is_taken(install, waveform, capsys, monkeypatch):
    fake = install(FakeSoundDevice(waveform))
    fake.busy = True
    assert "microphone 'built-in' cannot be used (Device unavailable)" in wrong([], capsys)
    monkeypatch.setattr(fake, "devices", ())
    line = wrong([], capsys)
    assert "there is no microphone (Error querying device 1)" in line and "--list-devices" in line


def test_a_microphone_that_fails_at_the_start(install, waveform, capsys):
    fake = install(FakeSoundDevice(waveform))
    stream = fake.InputStream

    def failing(**settings):
        def start():
            raise PortAudioError("unplugged")

        return SimpleNamespace(start=start, close=stream(**settings).close)

    fake.InputStream = failing
    assert main(["mic"]) == 1
    assert "samba-asr: built-in: microphone 'built-in' cannot be used (unplugged)" in capsys.readouterr().err


def test_lost_sound_is_told(install, waveform, capsys):
    install(FakeSoundDevice(waveform)).overflow = True
    assert main(["mic"]) == 0
    assert capsys.readouterr().err == "samba-asr: built-in: sound was lost: the machine is too busy\n"


def test_sound_that_waits_too_long_is_lost_and_told(install, waveform, monkeypatch):
    monkeypatch.setattr(microphone, "ROOM", 20)
    played = threading.Event()
    install(FakeSoundDevice(waveform, ends=played.set))
    source, blocks = Microphone(), []
    for block in source:
        if not blocks:
            assert played.wait(60)  # however busy the machine is, what plays meanwhile is all there is
            source.stop()
        blocks.append(block)
    assert source.lost and 20 <= len(blocks) < 60
    assert np.array_equal(np.concatenate(blocks), waveform[: 800 * len(blocks)])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ahead-seconds", "-1"], "ahead_seconds (-1.0) must not be negative"),
        (["--chunk-seconds", "0.01"], "chunk_seconds (0.01) must be at least 0.04"),
        (["--pause-seconds", "0"], "pause_seconds (0.0) must be at least 0.08"),
        (["--threads", "0"], "--threads (0) must be 1 or more"),
        (["--model", "nonsense"], "'nonsense'"),
        (["--beam-size", "0"], "beam_size (0) must be positive"),
        (["--device-name", "1"], "not allowed with"),
        (["talk.wav"], "unrecognized arguments: talk.wav"),
    ],
)
def test_wrong_usage_is_status_2(arguments, says, capsys):
    assert says in wrong(["--file", "a.wav", *arguments], capsys)


def test_a_file_that_is_none(capsys):
    assert main(["mic", "--file", "missing.wav"]) == 1
    assert capsys.readouterr() == ("", "samba-asr: missing.wav: no such file\n")


def test_a_damaged_file_gives_what_is_left_and_says_so(waveform, tmp_path, capsys):
    soundfile.write(tmp_path / "whole.wav", waveform, RATE)
    cut = tmp_path / "cut.wav"
    cut.write_bytes((tmp_path / "whole.wav").read_bytes()[:100_000])
    assert main(["mic", "--file", str(cut)]) == 0
    out, err = capsys.readouterr()
    assert out.strip() and all(line.startswith(f"samba-asr: {cut}: ") for line in err.splitlines())
    assert main(["mic", "--quiet", "--file", str(cut)]) == 0
    assert capsys.readouterr() == (out, "")


@pytest.mark.parametrize(("error", "status"), [(BrokenPipeError(), 141), (OSError(28, "No space left"), 1)])
def test_standard_output_that_takes_no_more(error, status, install, waveform, capsys, monkeypatch):
    fake = install(FakeSoundDevice(waveform))

    def failing(text, stream):
        raise error

    monkeypatch.setattr(mic, "put", failing)
    assert main(["mic"]) == status
    assert fake.closed == 1
    assert capsys.readouterr().err == ("samba-asr: standard output: No space left\n" if status == 1 else "")


def test_help_teaches_and_the_other_help_names_it(capsys):
    for argv, words in (
        (["mic", "-h"], ("--list-devices", "Ctrl-C", "./mic", "--hotwords")),
        (["-h"], ("mic --help",)),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)
        assert not re.search(r"[{}]", out.replace("{ctc,autoregressive,rescoring,joint}", "")) or argv == ["-h"]


def test_help_takes_neither_torch_nor_sounddevice():
    code = """
import sys
from samba_asr.cli import main
try:
    main(["mic", "--help"])
except SystemExit:
    print([name for name in ("torch", "sounddevice") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
    assert mic.DONE == 0
