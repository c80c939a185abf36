"""Files that something has happened to: each is transcribed or gets one clear line, and none stops the others."""

import re
import time

import numpy as np
import pytest
from broken_files import write_broken, write_whole

from samba_asr.audio.load import load_audio
from samba_asr.batches import Outcome
from samba_asr.cli import main
from samba_asr.transcriber import Transcriber
from samba_asr.transcript import Transcript, Word


class Listener:
    """Stands in for a recogniser: hears in every recording one word, and checks what it is given."""

    sample_rate = 16_000

    def __init__(self):
        self.heard = []

    def check(self, n_best):
        assert n_best == 1

    def transcribe_many(self, recordings, n_best=1):
        for given in recordings:
            yield Outcome(given if isinstance(given, Exception) else self.transcribe(given), 0.0)

    def transcribe(self, waveform):
        waveform = waveform[:]
        assert waveform.ndim == 1 and waveform.dtype == np.float32 and np.isfinite(waveform).all() and waveform.size
        seconds = len(waveform) / self.sample_rate
        self.heard.append(seconds)
        return Transcript("word", seconds, "listener", (Word("word", 0.0, seconds, 1.0),))


@pytest.fixture
def listener(monkeypatch, tiny_checkpoint):
    made = Listener()
    monkeypatch.setenv("SAMBA_ASR_MODEL", str(tiny_checkpoint))
    monkeypatch.setattr(Transcriber, "load", lambda *arguments, **options: made)
    return made


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    return write_whole(tmp_path_factory.mktemp("whole"), load_audio(clips[6][0])[:40_000])


def check(paths, listener, out, capfd):
    """Transcribe all; return how many failed."""
    begin = time.perf_counter()
    status = main(["-f", "json", "-f", "srt", "--output-dir", str(out), *map(str, paths)])
    assert time.perf_counter() - begin < 0.5 * len(paths)
    printed, said = capfd.readouterr()  # of libsndfile and FFmpeg too
    assert printed == ""
    failed = set()
    for line in said.splitlines():
        name, problem = re.fullmatch(r"samba-asr: (/.*?): (.+)", line).groups()
        assert problem.isprintable() and len(problem) < 150 and name not in problem
        if not problem.startswith(("damaged (", "is silent")):
            assert name not in failed
            failed.add(name)
    assert failed <= set(map(str, paths))
    assert status == (1 if failed else 0)
    done = [path for path in paths if str(path) not in failed]
    assert sorted(file.name for file in out.iterdir()) == sorted(f"{p.stem}.{f}" for p in done for f in ("json", "srt"))
    assert len(listener.heard) == len(done)
    assert max(listener.heard) < 600  # of a clip of two seconds and a half, were 192 kHz called 1 kHz
    return len(failed)


def test_whole_files_of_all_kinds(whole, listener, tmp_path, capfd):
    assert check(whole_once(whole), listener, tmp_path / "out", capfd) == 2  # the one without samples, and NaN


def whole_once(whole):
    """One file a name: outputs are named after them."""
    renamed = [path.with_stem(f"{path.stem}-{path.suffix[1:]}") for path in whole]
    for path, new in zip(whole, renamed, strict=True):
        new.write_bytes(path.read_bytes())
    return renamed


def test_some_broken_files(whole, listener, tmp_path, capfd):
    (tmp_path / "in").mkdir()
    paths = list(write_broken(tmp_path / "in", whole, 44, seed=1))
    assert 4 < check(paths, listener, tmp_path / "out", capfd) < 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_broken_files(whole, listener, tmp_path, capfd, seed):
    (tmp_path / "in").mkdir()
    paths = list(write_broken(tmp_path / "in", whole, 50, seed))
    assert 4 < check(paths, listener, tmp_path / "out", capfd) < 40
