"""Loading audio: every kind of file, and every kind of file that is none."""

import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import warnings

import av
import numpy as np
import pytest
import soundfile
import soxr
from audio_files import encode

from samba_asr.audio import load
from samba_asr.audio.load import AudioDecodeError, audio_duration, load_audio


@pytest.fixture(scope="module")
def speech(clips):
    """A real clip's samples, (samples,) float32 at 16 kHz, decoded without the code under test."""
    return soundfile.read(clips[1][0], dtype="float32")[0]


def tone(sample_rate, seconds=1.0, frequency=440.0, amplitude=0.5):
    times = np.arange(round(sample_rate * seconds)) / sample_rate
    return (amplitude * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def assert_sounds_like(samples, expected, correlation=0.95, slack=2100):
    """Compare with a lossy codec's output, which may begin late and end with padding."""
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - len(expected)) <= slack
    size = len(samples) + len(expected)
    cross = np.fft.irfft(np.fft.rfft(samples, size) * np.conj(np.fft.rfft(expected, size)), size)
    assert cross.max() / np.linalg.norm(samples) / np.linalg.norm(expected) > correlation
    assert 0.8 < np.linalg.norm(samples) / np.linalg.norm(expected) < 1.2


def quietly(function, *arguments):
    """Call, and fail on any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*arguments)


def test_real_clips(clips):
    for path, _ in clips:
        samples = quietly(load_audio, path)
        expected, rate = soundfile.read(path, dtype="float32")
        assert rate == 16000
        assert samples.dtype == np.float32
        np.testing.assert_allclose(samples, expected, atol=1e-4)
        assert audio_duration(path) == pytest.approx(len(samples) / 16000, abs=0.01)
        assert audio_duration(str(path)) == audio_duration(path)


def test_clips_are_what_their_readme_says(clips):
    assert len(clips) == 8
    readme = (clips[0][0].parent / "README.md").read_text()
    for path, text in clips:
        assert text in readme and path.name in readme
    assert sum(path.stat().st_size for path in clips[0][0].parent.iterdir()) < 300_000


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "opus"])
def test_soundfile_formats(tmp_path, speech, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "opus":
        soundfile.write(path, speech, 16000, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, speech, 16000)
    samples = quietly(load_audio, path)
    assert_sounds_like(samples, speech, slack=0)
    assert audio_duration(path) == pytest.approx(len(speech) / 16000, abs=1e-6)


@pytest.mark.parametrize(
    "name, codec, sample_rate, video",
    [
        ("a.m4a", "aac", 16000, False),
        ("a.m4a", "aac", 44100, False),
        ("a.mp4", "aac", 48000, True),
        ("a.webm", "libopus", 48000, False),
        ("a.ac3", "ac3", 48000, False),
        ("a.mka", "pcm_s32le", 16000, False),
        ("a.mov", "pcm_u8", 16000, False),
        ("a.mp2", "mp2", 48000, False),
    ],
)
def test_ffmpeg_formats(tmp_path, speech, name, codec, sample_rate, video):
    path = encode(tmp_path / name, speech, codec, sample_rate, video)
    samples = quietly(load_audio, path)
    assert_sounds_like(samples, speech)
    assert audio_duration(path) == pytest.approx(len(samples) / 16000, abs=0.1)


@pytest.mark.parametrize(
    "name, codec, sample_rate", [("a.mp3", "libmp3lame", 16000), ("a.m4a", "aac", 16000), ("a.webm", "libopus", 48000)]
)
def test_nothing_of_a_codec_s_delay_is_left(tmp_path, speech, name, codec, sample_rate):
    samples = load_audio(encode(tmp_path / name, speech, codec, sample_rate))
    size = min(len(samples), len(speech))
    assert np.corrcoef(samples[:size], speech[:size])[0, 1] > 0.95  # a millisecond of delay leaves nothing of it


@pytest.mark.parametrize("suffix", ["m4a", "mp4", "mov"])
def test_nothing_of_a_codec_s_padding_is_left(tmp_path, speech, suffix):
    speech = speech[: 20 * 1024 + 300]  # AAC has frames of 1024
    samples = load_audio(encode(tmp_path / f"a.{suffix}", speech, "aac", video=suffix == "mp4"))
    assert abs(len(samples) - len(speech)) <= 16  # MP4 counts in milliseconds


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"])
def test_sample_types_have_one_scale(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000, subtype=subtype)
    atol = {"PCM_U8": 0.01, "ULAW": 0.02, "IMA_ADPCM": 0.1}.get(subtype, 1e-4)
    samples = load_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(samples[500:16000], tone(16000)[500:], atol=atol)  # ADPCM needs a while to adapt


@pytest.mark.parametrize("sample_rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_keeps_a_tone(tmp_path, sample_rate):
    soundfile.write(tmp_path / "a.wav", tone(sample_rate), sample_rate, subtype="FLOAT")
    samples = load_audio(tmp_path / "a.wav")
    assert len(samples) == 16000 and samples.dtype == np.float32
    np.testing.assert_allclose(samples[1600:-1600], tone(16000)[1600:-1600], atol=1e-4)
    assert len(load_audio(tmp_path / "a.wav", 8000)) == 8000


@pytest.mark.parametrize("sample_rate", [8000, 11025, 44100, 48000, 192000])
def test_resampling_in_blocks_is_resampling_at_once(tmp_path, sample_rate, monkeypatch):
    channels = np.random.default_rng(0).normal(size=(sample_rate * 3 + 17, 2)).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "a.wav", channels, sample_rate, subtype="FLOAT")
    found = []
    for block in (1 << 18, 10_007, 2_000):
        monkeypatch.setattr(load, "BLOCK", block)
        found.append(load_audio(tmp_path / "a.wav"))
        assert (found[-1] == found[0]).all()  # to the bit, whatever the blocks
    expected = soxr.resample(channels.mean(axis=1), sample_rate, 16_000, quality="HQ")
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "mka"])
def test_a_file_is_never_held_at_its_own_rate(tmp_path, suffix):
    second = np.random.default_rng(0).integers(-3000, 3000, (48_000, 2), np.int16)
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 48_000, 2, "PCM_16") as file:
        for _ in range(60):
            file.write(second)
    if suffix == "mka":
        with av.open(str(tmp_path / "a.wav")) as source, av.open(str(tmp_path / "a.mka"), "w") as target:
            stream = target.add_stream("pcm_s16le", rate=48_000, layout="stereo")
            for frame in source.decode(audio=0):
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
    load_audio(tmp_path / f"a.{suffix}")  # what is imported on first use does not count
    tracemalloc.start()
    try:
        samples = load_audio(tmp_path / f"a.{suffix}")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert samples.nbytes == 4 * 60 * 16_000
    assert peak < 1.5 * samples.nbytes + 4e6  # the file's own samples, as mono floats: three times as many bytes


def test_a_stream_may_change_its_rate(tmp_path, speech):
    for rate in (16_000, 48_000):
        encode(tmp_path / f"{rate}.mp3", speech, "libmp3lame", rate, options={"write_xing": "0", "id3v2_version": "0"})
    (tmp_path / "a.mp3").write_bytes((tmp_path / "16000.mp3").read_bytes() + (tmp_path / "48000.mp3").read_bytes())
    samples = load_audio(tmp_path / "a.mp3")
    assert_sounds_like(samples[: len(speech)], speech, 0.9)
    assert_sounds_like(samples[-len(speech) :], speech, 0.9)
    assert len(samples) == pytest.approx(2 * len(speech), abs=5000)


@pytest.mark.parametrize("suffix", ["wav", "mka"])
def test_mono_is_the_mean_of_the_channels(tmp_path, suffix):
    channels = np.stack([tone(8000), 0.5 * tone(8000, frequency=700)], axis=1)
    soundfile.write(tmp_path / "a.wav", channels, 8000, subtype="FLOAT")
    if suffix == "mka":  # planes or packed, FFmpeg's order of samples must not matter
        with av.open(str(tmp_path / "a.wav")) as source, av.open(str(tmp_path / "a.mka"), "w") as target:
            stream = target.add_stream("pcm_f32le", rate=8000, layout="stereo")
            for frame in source.decode(audio=0):
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
    samples = load_audio(tmp_path / f"a.{suffix}", 8000)
    np.testing.assert_allclose(samples, channels.mean(axis=1), atol=1e-6)


def test_more_than_a_block_in_many_channels(tmp_path):
    channels = np.random.default_rng(0).normal(size=(100_001, 6)).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "a.wav", channels, 16000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav"), channels.mean(axis=1), atol=1e-6)


def test_very_short_and_silent(tmp_path):
    for samples in (1, 2, 800):
        soundfile.write(tmp_path / "a.wav", np.zeros(samples), 16000)
        assert (quietly(load_audio, tmp_path / "a.wav") == np.zeros(samples)).all()
        assert audio_duration(tmp_path / "a.wav") == samples / 16000
    soundfile.write(tmp_path / "b.wav", np.zeros((40, 2)), 8000)
    assert len(load_audio(tmp_path / "b.wav")) == 80


@pytest.mark.parametrize("junk", [b"", bytes(200)])
@pytest.mark.parametrize("bit_rates", [(128_000, 16_000), (16_000, 128_000)])
def test_mp3_whose_bit_rate_changes_and_without_a_length_is_read_to_its_end(tmp_path, bit_rates, junk):
    noise = np.random.default_rng(0).normal(size=48_000).astype(np.float32) * 0.1
    halves = []
    for bit_rate in bit_rates:
        options = {"write_xing": "0", "id3v2_version": "0"}
        half = encode(tmp_path / "half.mp3", noise, "libmp3lame", bit_rate=bit_rate, options=options)
        halves.append(half.read_bytes())
    path = tmp_path / "whole.mp3"
    path.write_bytes(junk + b"".join(halves))
    assert len(load_audio(path)) == pytest.approx(96_000, abs=4000)
    assert audio_duration(path) == pytest.approx(6.0, abs=0.25)


def test_lengths_that_headers_do_not_tell(tmp_path, speech):
    seconds = len(speech) / 16000
    soundfile.write(tmp_path / "a.flac", speech, 16000)
    flac = bytearray((tmp_path / "a.flac").read_bytes())
    flac[21] &= 0xF0  # STREAMINFO's 36-bit count of samples: 0 is "unknown"
    flac[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(flac)
    soundfile.write(tmp_path / "a.wav", speech, 16000)
    wav = bytearray((tmp_path / "a.wav").read_bytes())
    wav[4:8] = wav[40:44] = b"\xff" * 4  # as written to a pipe
    (tmp_path / "a.wav").write_bytes(wav)
    encode(tmp_path / "a.webm", speech, "libopus", 48000, options={"live": "1"})  # as a browser records
    for name in ("a.flac", "a.wav", "a.webm"):
        assert len(quietly(load_audio, tmp_path / name)) / 16000 == pytest.approx(seconds, abs=0.05), name
        assert audio_duration(tmp_path / name) == pytest.approx(seconds, abs=0.05), name


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "webm"])
def test_truncated_files_give_their_beginning(tmp_path, speech, suffix, capfd):
    path = tmp_path / f"a.{suffix}"
    if suffix == "webm":
        encode(path, speech, "libopus", 48000)
    else:
        soundfile.write(path, speech, 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = load_audio(path)
    assert 0.5 * len(speech) < len(samples) < 0.8 * len(speech)
    assert_sounds_like(samples, speech[: len(samples)])
    if suffix == "flac":
        assert [str(path) in str(w.message) and "damaged" in str(w.message) for w in caught] == [True]
        assert caught[0].filename == __file__
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["flac", "mp3", "opus", "m4a"])
def test_a_hole_costs_only_what_lay_in_it(tmp_path, speech, suffix, capfd):
    path = tmp_path / f"a.{suffix}"
    if suffix == "m4a":
        encode(path, speech, "aac")
    else:
        soundfile.write(path, speech, 16000, **({"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}))
    data = path.read_bytes()
    middle, hole = len(data) // 2, len(data) // 50
    path.write_bytes(data[:middle] + bytes(hole) + data[middle + hole :])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = load_audio(path)
    # an Ogg page holds a second or more, and is lost as a whole
    assert len(samples) > (0.4 if suffix == "opus" else 0.8) * len(speech)
    assert all("damaged" in str(w.message) for w in caught)
    assert caught or suffix == "flac"  # FFmpeg's FLAC decoder goes on without a word
    assert capfd.readouterr().err == ""


def test_a_place_far_beyond_the_end_is_no_traceback(tmp_path, speech, capfd):
    soundfile.write(tmp_path / "a.caf", speech, 16000)
    data = bytearray((tmp_path / "a.caf").read_bytes())
    data[52:76] = 2 * (b"free" + (1 << 60).to_bytes(8, "big"))  # two chunks of such a length after the description
    (tmp_path / "a.caf").write_bytes(data)
    with pytest.raises(AudioDecodeError, match="damaged"):
        load_audio(tmp_path / "a.caf")
    assert capfd.readouterr().err == ""


TEXT = b"Dear reader, these are words, yet nobody has spoken them.\n" * 50


@pytest.mark.parametrize(
    "name", ["a.wav", "a.mp3", "a.flac", "a.ogg", "a.m4a", "a.webm", "a.raw", "a.au", "a.txt", "a"]
)
@pytest.mark.parametrize("content", ["text", "noise", "few bytes", "empty"])
def test_what_is_not_audio_is_refused(tmp_path, name, content, capfd):
    noise = np.random.default_rng(0).bytes(30_000)
    path = tmp_path / name
    path.write_bytes({"text": TEXT, "noise": noise, "few bytes": b"RIFF", "empty": b""}[content])
    for function in (load_audio, audio_duration):
        with pytest.raises(AudioDecodeError) as caught:
            quietly(function, path)
        assert str(caught.value).startswith(f"{path}: ")
        assert caught.value.path == path
        expected = {"empty": "is empty", "few bytes": "bytes), or is not audio"}.get(
            content, "is not audio|no audio track"
        )
        assert any(words in caught.value.reason for words in expected.split("|"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.wav", "a.ogg"])
def test_header_without_samples(tmp_path, name):
    soundfile.write(tmp_path / name, np.zeros(0), 16000)
    with pytest.raises(AudioDecodeError, match=r"holds no samples|too short to hold audio"):
        load_audio(tmp_path / name)


def test_video_without_sound(tmp_path):
    path = encode(tmp_path / "a.mp4", None, codec=None, video=True)
    for function in (load_audio, audio_duration):
        with pytest.raises(AudioDecodeError, match="no audio track"):
            function(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_sound(tmp_path, value):
    samples = np.stack([tone(16000), tone(16000)], axis=1)
    samples[700] = value, -value
    samples[800, 0] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioDecodeError, match=r"not sound.*(nan|inf|e\+29)"):
        quietly(load_audio, tmp_path / "a.wav")


def test_impossible_sample_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16000), 1)
    for function in (load_audio, audio_duration):
        with pytest.raises(AudioDecodeError, match=r"sample rate \(1 Hz\)"):
            function(tmp_path / "a.wav")


@pytest.mark.parametrize("function", [load_audio, audio_duration])
def test_missing_file_and_folder(tmp_path, function):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav: no such file"):
        function(tmp_path / "nowhere.wav")
    with pytest.raises(AudioDecodeError, match="is a folder; name the audio files in it"):
        function(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioDecodeError, match="regular file"):
        load_audio(tmp_path / "a.wav")


def test_unreadable_file(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AudioDecodeError, match=r"cannot be opened \(Permission denied\)"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["list.m3u8", "list.wav", "list.ffconcat"])
def test_a_playlist_opens_no_other_file(tmp_path, speech, name):
    soundfile.write(tmp_path / "secret.mp3", speech, 16000)
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\n{tmp_path}/secret.mp3\n#EXT-X-ENDLIST\n"
    if name.endswith("ffconcat"):
        text = "ffconcat version 1.0\nfile secret.mp3\n"
    (tmp_path / name).write_text(text + "# padding\n" * 20)
    for function in (load_audio, audio_duration):
        with pytest.raises(AudioDecodeError):
            function(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_any_file_name(tmp_path, speech):
    soundfile.write(tmp_path / "a.flac", speech, 16000)
    encode(tmp_path / "a.m4a", speech, "aac")
    for stem in (b"tab\tnew\nline", "ünï 語".encode(), b"not utf-8 \xff"):
        for suffix in (".flac", ".m4a"):
            path = os.fsdecode(os.path.join(os.fsencode(tmp_path), stem + suffix.encode()))
            shutil.copy(tmp_path / f"a{suffix}", path)
            assert_sounds_like(load_audio(path), speech)


def test_error_survives_another_process():
    error = pickle.loads(pickle.dumps(AudioDecodeError("a.wav", "is empty (0 bytes)")))
    assert isinstance(error, AudioDecodeError) and isinstance(error, ValueError)
    assert (error.path, error.reason, str(error)) == ("a.wav", "is empty (0 bytes)", "a.wav: is empty (0 bytes)")


def test_needs_no_torch():
    code = "import sys, samba_asr.audio.load; assert not {'torch', 'librosa', 'torchaudio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
