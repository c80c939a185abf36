"""What arguments name: files, folders, patterns, standard input."""

import io
import os
import sys
from pathlib import Path

import pytest

from samba_asr.recordings import Recording, find_recordings, may_be_several


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to be in, with files that hold nothing."""
    monkeypatch.chdir(tmp_path)
    for path in (
        "b.wav",
        "a.txt",
        "t/z.Mp3",
        "t/a.b.flac",
        "t/notes.md",
        "t/.x.wav",
        "t/.git/y.wav",
        "t/s/c.mp4",
        "e/x",
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    return tmp_path


def names(*arguments):
    found = find_recordings(arguments)
    assert all(recording.name == recording.path for recording in found)
    return [recording.name for recording in found if not recording.problem]


def test_files_are_taken_as_they_are(here):
    assert names("b.wav", "missing.wav", "a.txt", "b.wav") == ["b.wav", "missing.wav", "a.txt", "b.wav"]
    assert not any(map(may_be_several, ["b.wav", "missing.wav", "-", ""]))


def test_a_folder_stands_for_its_audio_files(here):
    assert names("t") == ["t/a.b.flac", "t/s/c.mp4", "t/z.Mp3"]
    assert names("t/", str(here / "t" / "s")) == ["t/a.b.flac", "t/s/c.mp4", "t/z.Mp3", str(here / "t/s/c.mp4")]
    assert may_be_several("t")


def test_folders_are_sorted_whatever_the_file_system_does(here, monkeypatch):
    walk = [("t", ["b", "a"], ["z.wav", "c.wav"]), ("t/b", [], ["1.wav"]), ("t/a", [], ["2.wav"])]
    monkeypatch.setattr(os, "walk", lambda *arguments, **options: walk)
    assert names("t") == ["t/a/2.wav", "t/b/1.wav", "t/c.wav", "t/z.wav"]


def test_a_pattern_stands_for_what_it_matches(here):
    assert names("*.wav", "?.txt") == ["b.wav", "a.txt"]
    assert names("t/[xyz].*") == ["t/z.Mp3"]
    assert names("t/*") == ["t/a.b.flac", "t/notes.md", "t/s/c.mp4", "t/z.Mp3"]  # as if the shell had named them
    assert names("**/*.mp4") == ["t/s/c.mp4"]
    assert sorted(names("t/**")) == ["t/a.b.flac", "t/notes.md", "t/s/c.mp4", "t/z.Mp3"]  # each once
    assert may_be_several("*.wav") and may_be_several("*.nothing")


def test_a_file_s_own_name_is_no_pattern(here):
    Path("a[1].wav").touch()
    Path("a1.wav").touch()
    assert names("a[1].wav") == ["a[1].wav"]
    assert names("a[12].wav") == ["a1.wav"]
    assert not may_be_several("a[1].wav")


@pytest.mark.parametrize(
    ("argument", "says"), [("e", "folder without audio"), ("*.ogg", "no file"), ("e/*/", "no file")]
)
def test_nothing_found_is_a_problem(here, argument, says):
    (recording,) = find_recordings([argument])
    assert recording.name == argument and says in recording.problem


def test_a_folder_that_cannot_be_read_is_a_problem(here, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path) == "t/s":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find_recordings(["t"])
    assert [(recording.name, recording.problem) for recording in found if recording.problem] == [
        ("t/s", "cannot be opened (Permission denied)")
    ]
    assert len(found) == 3


def test_standard_input_becomes_a_file_for_a_while(monkeypatch):
    assert find_recordings(["-"]) == [Recording("stdin", "-")]
    content = bytes(range(256)) * 1000
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with find_recordings(["-"])[0].opened() as path:
        assert Path(path).read_bytes() == content
    assert not Path(path).parent.exists()
    with Recording("a.wav", "a.wav").opened() as path:
        assert path == "a.wav"
