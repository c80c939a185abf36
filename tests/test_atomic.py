"""A file is replaced whole or not at all, and nothing else stays behind."""

import os
import stat

import pytest

from samba_asr.atomic import replacing


def test_a_whole_file_takes_the_old_ones_place(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "words.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(str(path)) as partial:
        partial.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_names_may_be_as_long_as_they_get_and_modes_are_the_usual(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    with replacing(path) as partial:
        partial.write_text("x")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
