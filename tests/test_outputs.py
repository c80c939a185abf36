"""Names of output files: no two alike, none an input's."""

from pathlib import Path

import pytest

from samba_asr.outputs import output_paths
from samba_asr.recordings import Recording


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["a/x.wav", "b/x.mp3", "x-2.wav"], ["x", "x-3", "x-2"]),
        (["x-2.wav", "a/x.wav", "b/x.wav"], ["x-2", "x", "x-3"]),
        (["x.wav", "x.wav", "x.wav"], ["x", "x-2", "x-3"]),
        (["a/Talk.wav", "b/talk.wav"], ["Talk", "talk-2"]),
        (["a/caf\u00e9.wav", "b/cafe\u0301.wav"], ["caf\u00e9", "cafe\u0301-2"]),
        (["one.two.wav", "one.wav"], ["one.two", "one"]),
        (["out/x.txt", "x.wav"], ["x-2", "x-3"]),
    ],
)
def test_output_names(inputs, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = output_paths([Recording(path, path) for path in inputs], Path("out"), ["txt"])
    assert [output.paths for output in outputs] == [(Path("out") / f"{name}.txt",) for name in names]
    assert [bool(o.renamed) for o in outputs] == [
        Path(path).stem != name for path, name in zip(inputs, names, strict=True)
    ]


def test_all_formats_of_a_recording_share_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recordings = [Recording(path, path) for path in ("a/x.wav", "b/x.wav", "out/x-2.json")] + [Recording("stdin", "-")]
    outputs = output_paths(recordings, Path("out"), ["srt", "json"])
    names = ("x", "x-3", "x-2-2", "stdin")
    assert [o.paths for o in outputs] == [(Path("out") / f"{n}.srt", Path("out") / f"{n}.json") for n in names]
    assert outputs[1].renamed == "goes to out/x-3.srt, out/x-3.json, because x.srt is taken by another recording"
    Path("out").mkdir()
    Path("out/x.srt").touch()
    assert not outputs[0].exist
    Path("out/x.json").touch()
    assert outputs[0].exist


def test_a_link_to_itself_is_a_name_as_any_other(tmp_path, monkeypatch):
    """It cannot be read, but the others shall be."""
    monkeypatch.chdir(tmp_path)
    Path("loop.wav").symlink_to("loop.wav")
    outputs = output_paths([Recording(name, name) for name in ("loop.wav", "x.wav")], Path(), ["txt"])
    assert [str(path) for output in outputs for path in output.paths] == ["loop.txt", "x.txt"]
