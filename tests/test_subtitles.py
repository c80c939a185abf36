"""Segments, and the formats made of words: files checked by hand, and what holds for any words."""

import json
import random
import re
from dataclasses import replace
from itertools import pairwise

import av
import pytest

from samba_asr.subtitles import LINE, LONGEST, SHORTEST, srt, subtitles, vtt
from samba_asr.transcript import LONGEST_SEGMENT, PAUSE, Transcript, Word, segmented
from samba_asr.writers import WRITERS, tsv


def said(text, start, seconds=0.25, gap=0.0):
    """Words one after the other from a second on, each as long, with a gap before the next."""
    return tuple(
        Word(word, start + i * (seconds + gap), start + i * (seconds + gap) + seconds, 0.5)
        for i, word in enumerate(text.split())
    )


def transcript_of(words, duration):
    return Transcript(" ".join(word.text for word in words), duration, "m", words)


TALK = transcript_of(
    (
        *said("The quick brown fox jumps over the lazy dog, and then it goes home.", 0.5),
        *said("Why?", 4.6),
        *said("Because one <line> & another are too long to be read at once, a cue ends where it may end", 6.0, 0.3),
    ),
    12.2,
)

SRT = """\
1
00:00:00,500 --> 00:00:04,000
The quick brown fox jumps over the
lazy dog, and then it goes home.

2
00:00:04,600 --> 00:00:05,433
Why?

3
00:00:06,000 --> 00:00:09,900
Because one <line> & another
are too long to be read at once,

4
00:00:09,900 --> 00:00:12,000
a cue ends where it may end
"""

VTT = """\
WEBVTT

00:00:00.500 --> 00:00:04.000
The quick brown fox jumps over the
lazy dog, and then it goes home.

00:00:04.600 --> 00:00:05.433
Why?

00:00:06.000 --> 00:00:09.900
Because one &lt;line&gt; &amp; another
are too long to be read at once,

00:00:09.900 --> 00:00:12.000
a cue ends where it may end
"""

TSV = """\
start\tend\ttext
500\t4000\tThe quick brown fox jumps over the lazy dog, and then it goes home.
4600\t4850\tWhy?
6000\t12000\tBecause one <line> & another are too long to be read at once, a cue ends where it may end
"""


def test_files_checked_by_hand():
    assert srt(TALK) == SRT
    assert vtt(TALK) == VTT
    assert tsv(TALK, "", False) == TSV


def test_nothing_said_is_a_valid_file():
    nothing = Transcript("", 3.0, "m")
    contents = {name: write(nothing, "a.wav", True) for name, write in WRITERS.items()}
    assert contents.pop("json").startswith('{"path": "a.wav", "duration": 3.0, "text": ""')
    assert contents == {"txt": "\n", "srt": "", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n"}


@pytest.mark.parametrize(("name", "content"), [("a.srt", SRT), ("a.vtt", VTT)])
def test_ffmpeg_reads_what_we_write(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with av.open(str(tmp_path / name)) as file:
        (stream,) = file.streams
        shown = [(p.pts * p.time_base, (p.pts + p.duration) * p.time_base) for p in file.demux(stream) if p.size]
    expected = [(cue.start / 1000, cue.end / 1000) for cue in subtitles(TALK)]
    assert [(round(float(start), 6), round(float(end), 6)) for start, end in shown] == expected


# Cues


def cues(words, duration=None):
    return subtitles(transcript_of(words, words[-1].end if duration is None else duration))


def test_a_short_cue_stays_while_silence_follows():
    (cue,) = cues(said("yes", 1.0), 10.0)
    assert (cue.start, cue.end) == (1000, 1000 + round(SHORTEST * 1000))
    first, second = cues((*said("yes", 1.0, 0.1), *said("no", 1.7, 0.1)), 10.0)
    assert (first.start, first.end, second.start) == (1700 - round(SHORTEST * 1000), 1700, 1700)


def test_a_short_cue_at_the_end_begins_in_the_silence_before():
    (cue,) = cues(said("yes", 1.0))
    assert (cue.start, cue.end) == (1250 - round(SHORTEST * 1000), 1250)
    first, second = cues((*said("well", 0.0, 1.0), *said("yes", 1.6, 0.2)))
    assert (first.start, first.end, second.start, second.end) == (0, 1000, 1000, 1800)
    (cue,) = cues(said("yes", 0.2, 0.1))
    assert (cue.start, cue.end) == (0, 300)


def test_rounding_moves_nothing_behind_the_end():
    (cue,) = cues((Word("yes", 2.0006, 2.0006, 1.0),))
    assert cue.end == 2000


def test_quickly_said_words_stay_until_they_are_read():
    text = "twenty letters a second are read at"
    (cue,) = cues(said(text, 0.0, 0.05), 10.0)
    assert cue.end == len(text) * 50
    first, _ = cues((*said(text, 0.0, 0.05), *said("next", 1.0, 2.0)), 10.0)
    assert first.end == 1000


def test_a_cue_ends_at_a_gap_rather_than_in_the_midst_of_words():
    words = said("one two three four five six seven eight nine ten eleven twelve", 0.0, 0.4)
    late = tuple(replace(word, start=word.start + 0.4, end=word.end + 0.4) for word in words[4:])
    first, second = cues(words[:4] + late)
    assert (first.lines, second.lines[0].split()[0]) == (("one two three four",), "five")
    assert len(cues(words)) == 1


def test_cues_are_full_alike():
    assert [len(" ".join(cue.lines).split()) for cue in cues(said("word " * 22, 0.0))] == [11, 11]


def test_quickly_said_words_share_their_cue_with_slow_ones():
    first, second = cues((*said("quick " * 10, 0.0, 0.1), *said("slow. " * 10, 1.0, 0.5)))
    assert "slow. slow." in " ".join(first.lines) and len(second.lines) == 1
    assert first.end == second.start > 2000  # not 1000


def test_a_cue_is_broken_where_it_would_stay_too_long():
    slow = cues(said("a b c d e f g h i j k l m", 0.0, 1.0, 0.2))
    assert len(slow) == 3  # not 2: seven seconds hold six words
    assert max(cue.end - cue.start for cue in slow) <= LONGEST * 1000
    (word,) = cues(said("looong", 1.0, 30.0))
    assert (word.start, word.end) == (1000, 8000)


def test_lines_are_balanced():
    (cue,) = cues(said("these words would leave a single one alone", 0.0), 9.0)
    assert cue.lines == ("these words would leave a single one alone",)
    (cue,) = cues(said("these words would leave one of them all alone", 0.0), 9.0)
    assert cue.lines == ("these words would leave", "one of them all alone")
    (cue,) = cues(said("these words would leave one, and none of them", 0.0), 9.0)
    assert cue.lines == ("these words would leave one,", "and none of them")


def test_a_word_longer_than_a_line_has_a_cue_of_its_own():
    long = "x" * (LINE + 1)
    assert [cue.lines for cue in cues(said(f"a {long} b", 0.0, 1.0))] == [("a",), (long,), ("b",)]


def random_transcript(seed):
    """Words as no model says them: of any length, fast, slow, with and without gaps."""
    luck = random.Random(seed)
    words, now = [], luck.choice([0.0, luck.uniform(0, 3)])
    for _ in range(luck.choice([1, 2, 10, 200])):
        text = "".join(luck.choices("abc", k=luck.choice([1, 3, 5, 8, 20, 42]))) + luck.choice(["", "", "", ",", "."])
        end = now + luck.choice([0.0, 0.04, 0.3, 0.3, 0.6, 9.0])
        words.append(Word(text[:LINE], now, end, luck.random()))
        now = end + luck.choice([0.0, 0.0, 0.0, 0.02, 0.3, 0.49, 0.5, 3.0])
    return transcript_of(tuple(words), words[-1].end + luck.choice([0.0, 0.0004, 2.0]))


@pytest.mark.parametrize("seed", range(100))
def test_what_holds_for_any_words(seed):
    transcript = random_transcript(seed)
    made = subtitles(transcript)
    assert " ".join(line for cue in made for line in cue.lines) == transcript.text
    assert all(len(cue.lines) <= 2 and all(0 < len(line) <= LINE for line in cue.lines) for cue in made)
    assert all(
        0 <= cue.start <= cue.end <= min(cue.start + LONGEST * 1000, transcript.duration * 1000 + 1e-6) for cue in made
    )
    assert all(a.end <= b.start for a, b in pairwise(made))
    firsts = first_words(made, transcript.words)
    for i, (cue, word) in enumerate(zip(made, firsts, strict=True)):
        assert cue.start <= round(word.start * 1000)  # seen no later than heard
        free = made[i - 1].end if i else 0
        after = made[i + 1].start if i + 1 < len(made) else int(transcript.duration * 1000 + 1e-6)
        assert cue.end - cue.start >= min(round(SHORTEST * 1000), after - free)
    assert {segment.words[0] for segment in transcript.segments} <= set(firsts)


def first_words(made, words):
    """Each cue's first word."""
    places = [0]
    for cue in made:
        places.append(places[-1] + sum(len(line.split()) for line in cue.lines))
    return [words[place] for place in places[:-1]]


def test_cues_are_the_cheapest_of_all_splits(monkeypatch):
    """The search against every way to split ten words."""
    from samba_asr import subtitles as module

    luck = random.Random(0)
    for _ in range(20):
        words = [w for w in random_transcript(luck.randrange(10**6)).words if w.end - w.start < 1][:10]
        if len(words) < 2:
            continue
        after = words[-1].end + luck.choice([0, 1])

        def price(bounds, words=words, after=after):
            total = 0.0
            for first, end in pairwise(bounds):
                group = words[first:end]
                span = group[-1].end - group[0].start
                if len(group) > 1 and (module._lines(group) is None or span > LONGEST):
                    return float("inf")
                total += module._cost(group, words[end].start if end < len(words) else after)
            return total

        count = len(words)
        splits = [[0, *(i for i in range(1, count) if mask >> (i - 1) & 1), count] for mask in range(1 << (count - 1))]
        found = module._grouped(words, after)
        bounds = [0]
        for group in found:
            bounds.append(bounds[-1] + len(group))
        assert price(bounds) == pytest.approx(min(map(price, splits)))


# Segments


def test_a_segment_ends_at_a_pause():
    words = (*said("a b c", 0.0, 0.25), *said("d e", 0.75 + PAUSE, 0.25), *said("f", 1.74 + PAUSE, 0.25))
    segments = segmented(words)
    assert [(s.text, s.start, s.end) for s in segments] == [("a b c", 0.0, 0.75), ("d e f", 1.25, words[-1].end)]
    assert sum((s.words for s in segments), ()) == words
    assert segmented(()) == ()


def test_a_segment_s_confidence_is_its_words_mean():
    (segment,) = segmented((Word("a", 0.0, 1.0, 0.2), Word("b", 1.0, 2.0, 0.6)))
    assert segment.confidence == pytest.approx(0.4)


def test_a_long_segment_is_split_at_its_widest_gap():
    words = said("w " * 100, 0.0, 0.4)
    moved = tuple(replace(w, start=w.start + 0.1, end=w.end + 0.1) if i >= 40 else w for i, w in enumerate(words))
    assert [len(s.words) for s in segmented(moved)] == [40, 60]
    assert [len(s.words) for s in segmented(words)] == [50, 50]  # no gap at all: the middle
    early = tuple(replace(w, start=w.start + 0.3, end=w.end + 0.3) if i else w for i, w in enumerate(moved))
    assert [len(s.words) for s in segmented(early)] == [40, 60]  # not a single word and the rest
    longest = (*said("a b", 0.0), Word("looong", 0.5, 90.0, 0.5), *said("c", 90.1))
    assert [len(s.words) for s in segmented(longest)] == [2, 1, 1]  # nothing is in the middle but a word


@pytest.mark.parametrize("seed", range(30))
def test_segments_of_any_words(seed):
    words = random_transcript(seed).words
    segments = segmented(words)
    assert sum((segment.words for segment in segments), ()) == words
    for segment in segments:
        assert segment.text == " ".join(word.text for word in segment.words)
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
        assert all(b.start - a.end < PAUSE for a, b in pairwise(segment.words))
        assert segment.end - segment.start <= LONGEST_SEGMENT or len(segment.words) == 1
    for a, b in pairwise(segments):
        assert b.start - a.end >= PAUSE or b.end - a.start > LONGEST_SEGMENT / 4


# Other formats


def test_tsv_has_a_row_a_segment():
    rows = [line.split("\t") for line in tsv(TALK, "", False).splitlines()]
    assert rows[0] == ["start", "end", "text"]
    assert [(int(a) / 1000, int(b) / 1000, text) for a, b, text in rows[1:]] == [
        (pytest.approx(s.start, abs=6e-4), pytest.approx(s.end, abs=6e-4), s.text) for s in TALK.segments
    ]


def test_json_has_words_only_when_asked():
    short, full = (json.loads(WRITERS["json"](TALK, "a\tb", with_words)) for with_words in (False, True))
    assert list(short) == ["path", "duration", "text", "confidence", "model"]
    assert list(full) == ["path", "duration", "text", "confidence", "segments", "words", "model"]
    assert short["path"] == "a\tb"
    assert [segment["text"] for segment in full["segments"]] == [segment.text for segment in TALK.segments]
    assert full["segments"][1] == {"text": "Why?", "start": 4.6, "end": 4.85, "confidence": 0.5}
    assert len(re.findall("\n", WRITERS["json"](TALK, "", True))) == 1
