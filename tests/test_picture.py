"""The picture on the page: an SVG that a parser reads, a PNG that another library reads, words in their places."""

import base64
import io
import itertools
import re
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from samba_asr.picture import HEIGHT, LEGEND, LETTER, LONGEST, ROW, ROWS, SCALE, SURE, draw
from samba_asr.transcript import Transcript, Word


def parsed(words, seconds=2.0, features=None):
    transcript = Transcript(" ".join(word.text for word in words), seconds, "m", tuple(words))
    features = np.random.default_rng(0).random((round(100 * seconds), 80)) if features is None else features
    drawn = draw(transcript, features, 0.01)
    return ElementTree.fromstring(f"<div>{drawn}</div>")


def test_words_stand_above_where_they_are_said():
    words = [Word("one", 0.25, 0.5, 1.0), Word("a<b&c", 1.0, 1.25, 0.0)]
    svg = parsed(words).find("div/svg")
    for word, group in zip(words, svg.findall("g"), strict=True):
        assert group.find("text").text == word.text
        assert float(group.find("rect").get("x")) == pytest.approx(word.start * SCALE, abs=0.1)
        assert float(group.find("rect").get("width")) == pytest.approx(0.25 * SCALE, abs=0.1)
        assert group.find("path").get("d").startswith(f"M{word.start * SCALE:.1f} ")
        assert float(group.find("text").get("y")) < ROW * ROWS
    assert svg.findall("g")[0].find("title").text == "one: 0.25 to 0.50 s, confidence 1.00"
    colours = [group.find("text").get("fill") for group in svg.findall("g")]
    assert colours == [f"hsl({SURE} 70% 40%)", "hsl(0 70% 40%)"]
    assert int(svg.get("width")) == 2 * SCALE
    assert [text.text for text in svg.findall("text")] == ["0 s", "1 s"]


def test_words_that_follow_closely_do_not_cover_each_other():
    words = [Word("considerable", 0.3 * i, 0.3 * i + 0.3, 0.5) for i in range(6)]
    boxes = {}
    for group in parsed(words, 3.0).findall("div/svg/g"):
        text = group.find("text")
        boxes.setdefault(text.get("y"), []).append((float(text.get("x")), len(text.text) * LETTER))
    assert len(boxes) == ROWS
    for row in boxes.values():
        assert all(left + width <= after for (left, width), (after, _) in itertools.pairwise(row))


def test_the_spectrogram_is_a_png():
    features = np.zeros((200, 80))
    features[:100, :40] = 1.0  # first half, low half
    image = parsed([], features=features).find("div/svg/image")
    assert (image.get("width"), image.get("height")) == (str(2 * SCALE), str(HEIGHT))
    kind, content = image.get("href").split(",")
    assert kind == "data:image/png;base64"
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(content)))[:, :, :3].sum(2)
    assert picture.shape == (80, 200)
    assert picture[60, 50] > 2.5 and picture[20, 50] == picture[60, 150] == picture[20, 150] < 0.1


def test_a_long_recording_is_drawn_in_part():
    words = [Word("early", 1.0, 2.0, 0.5), Word("late", LONGEST + 1, LONGEST + 2, 0.5)]
    drawn = parsed(words, LONGEST + 10, np.zeros((round(100 * LONGEST) + 1000, 4)))
    assert [text.text for text in drawn.findall("div/svg/g/text")] == ["early"]
    assert drawn.find("p").text == f"{LEGEND} Only the first 120 seconds are drawn."
    assert drawn.find("div/svg").get("width") == str(round(LONGEST * SCALE))
    assert parsed(words[:1]).find("p").text == LEGEND


def test_nothing_is_no_picture():
    assert draw(Transcript("", 0.0, "m"), np.zeros((0, 80)), 0.01) == ""
    assert re.match("<div", draw(Transcript("", 0.01, "m"), np.zeros((1, 80)), 0.01))
