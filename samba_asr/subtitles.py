"""Words as subtitles: cues that can be read while they are shown."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from samba_asr.transcript import Transcript, Word

LINE = 42
"""Characters of a line; only a word that is longer has a longer one. A cue has two lines at most."""
LONGEST = 7.0
"""Seconds that a cue stays."""
SHORTEST = 5 / 6
"""Seconds that a cue stays at least, where the cues around it leave them."""
READING_SPEED = 20.0
"""Characters a second that are comfortably read; a cue stays longer for it where silence follows."""
PAUSE = 0.3
"""Seconds without a word that are as good a reason for the next cue as having one cue fewer is against it."""
BEFORE_BREAK = {".": 0.5, "?": 0.5, "!": 0.5, ",": 0.25, ";": 0.25, ":": 0.25}
"""How much better a cue ends behind these, in cues."""


class Cue(NamedTuple):
    """What is shown at once."""

    lines: tuple[str, ...]
    """One or two."""
    start: int
    """Milliseconds."""
    end: int
    """Milliseconds; not after the next cue's start, and not after the recording's end."""


def subtitles(transcript: Transcript) -> list[Cue]:
    """Return the words as cues, in order, each word in one.

    No cue spans the pause between two segments. Within a segment the cues are those that cost least: few, full alike,
    ending at gaps and punctuation, and as long on screen as their text takes to read.
    """
    groups = [group for segment, after in _with_next(transcript) for group in _grouped(segment, after)]
    cues: list[Cue] = []
    limit = int(transcript.duration * 1000 + 1e-6)
    for i, words in enumerate(groups):
        free = cues[-1].end if cues else 0
        start = min(_milliseconds(words[0].start), limit)
        after = _milliseconds(groups[i + 1][0].start) if i + 1 < len(groups) else limit
        wanted = start + _milliseconds(_needed(words))
        end = min(max(_milliseconds(words[-1].end), wanted), start + _milliseconds(LONGEST), after, limit)
        end = max(start, end)
        start = max(free, min(start, end - _milliseconds(SHORTEST)))  # too little silence follows: some of that before
        cues.append(Cue(_lines(words) or (_text(words),), start, end))
    return cues


def srt(transcript: Transcript) -> str:
    """Return SubRip subtitles; empty where nothing was said."""
    blocks = [
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n" + "".join(f"{line}\n" for line in cue.lines)
        for number, cue in enumerate(subtitles(transcript), 1)
    ]
    return "\n".join(blocks)


def vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles."""
    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n" + "".join(f"{_escaped(line)}\n" for line in cue.lines)
        for cue in subtitles(transcript)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _with_next(transcript: Transcript) -> list[tuple[tuple[Word, ...], float]]:
    """Each segment's words, and the second at which what follows begins."""
    segments = transcript.segments
    after = [*(segment.start for segment in segments), transcript.duration][1:]
    return [(segment.words, second) for segment, second in zip(segments, after, strict=True)]


def _grouped(words: Sequence[Word], after: float) -> list[Sequence[Word]]:
    """Split a segment's words into cues: the split with the least sum of costs; after: the next segment's start."""
    costs = [0.0] + [float("inf")] * len(words)
    begins = [0] * (len(words) + 1)
    for first in range(len(words)):
        for end in range(first + 1, len(words) + 1):
            group = words[first:end]
            if len(group) > 1 and (_lines(group) is None or group[-1].end - group[0].start > LONGEST):
                break
            cost = costs[first] + _cost(group, words[end].start if end < len(words) else after)
            if cost < costs[end]:
                costs[end], begins[end] = cost, first
    groups = []
    end = len(words)
    while end:
        groups.append(words[begins[end] : end])
        end = begins[end]
    return groups[::-1]


def _cost(words: Sequence[Word], after: float) -> float:
    """What a cue costs, in cues; after: the second at which it has to be gone."""
    hurry = max(0.0, 1 - (after - words[0].start) / _needed(words))
    pauses = sum((max(b.start - a.end, 0) / PAUSE) ** 2 for a, b in pairwise(words))
    fullness = len(_text(words)) / (2 * LINE)
    return 1 + 4 * hurry + pauses + fullness**2 - BEFORE_BREAK.get(words[-1].text[-1:], 0.0)


def _needed(words: Sequence[Word]) -> float:
    """Seconds that a cue should stay."""
    return max(SHORTEST, len(_text(words)) / READING_SPEED)


def _lines(words: Sequence[Word]) -> tuple[str, ...] | None:
    """One line or two balanced ones, or None where the words need more."""
    if len(_text(words)) <= LINE:
        return (_text(words),)
    splits = [(_text(words[:i]), _text(words[i:])) for i in range(1, len(words))]
    fitting = [split for split in splits if max(map(len, split)) <= LINE]
    return min(fitting, key=_imbalance, default=None)


def _imbalance(split: tuple[str, str]) -> tuple[float, int]:
    """Characters that one line has more than the other, less where the first ends with punctuation; the upper line is
    rather the shorter one."""
    above, below = split
    return abs(len(above) - len(below)) - 60 * BEFORE_BREAK.get(above[-1], 0.0), len(above)


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
