"""Transcripts as text: one function a format, each giving the whole content of a file."""

import json
from collections.abc import Callable, Mapping

from samba_asr.subtitles import srt, vtt
from samba_asr.transcript import Transcript


def txt(transcript: Transcript, path: str, with_words: bool) -> str:
    """Return the text in a line; with_words: below it a line for each word: start, end, confidence, word. Where there
    are n best texts, a line for each at the end: score, text."""
    lines = [transcript.text]
    if with_words:
        lines += [f"{w.start:.3f}\t{w.end:.3f}\t{w.confidence:.3f}\t{w.text}" for w in transcript.words]
    lines += [f"{each.score:.3f}\t{each.text}" for each in transcript.n_best]
    return "".join(f"{line}\n" for line in lines)


def tsv(transcript: Transcript, path: str, with_words: bool) -> str:
    """Return a line for each segment, as Whisper's command line does: start and end in milliseconds, text."""
    rows = [f"{round(1000 * s.start)}\t{round(1000 * s.end)}\t{s.text}\n" for s in transcript.segments]
    return "".join(["start\tend\ttext\n", *rows])


def json_line(transcript: Transcript, path: str, with_words: bool) -> str:
    """Return a JSON object in a line; with_words: with segments and words; n_best where there are such texts."""
    values = transcript.to_dict()
    names = ("duration", "text", "confidence", *(("segments", "words") if with_words else ()), "n_best", "model")
    return json.dumps({"path": path} | {name: values[name] for name in names if name in values}) + "\n"


WRITERS: Mapping[str, Callable[[Transcript, str, bool], str]] = {
    "txt": txt,
    "srt": lambda transcript, path, with_words: srt(transcript),
    "vtt": lambda transcript, path, with_words: vtt(transcript),
    "tsv": tsv,
    "json": json_line,
}
"""By the ending of a file: what writes a transcript, the recording's path, and whether its words are asked for one by
one, which srt, vtt and tsv have no place for."""

LINEWISE = ("txt", "json")
"""Formats in which several transcripts, one after the other, are as good as one."""
