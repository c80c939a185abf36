"""A recording as a picture for a web page: its spectrogram, and above it the words where they are said."""

import base64
import html
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samba_asr.transcript import Transcript, Word

LONGEST = 120.0
"""Seconds: what comes later is not drawn."""
SCALE = 120
"""Pixels a second."""
HEIGHT, ROW, ROWS, AXIS = 120, 20, 3, 18
"""Pixels: of the spectrogram, of a row of words, how many rows of words there are, and of the seconds below."""
LETTER = 7.5
"""Pixels that a letter takes."""
LEGEND = "The redder a word, the more doubtful it is: point at it for its seconds and its confidence."
SURE = 165
"""Hue of a word with confidence 1, in degrees: that of confidence 0 is red, 0."""
_COLOURS = np.array([(0, 0, 4), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191)], np.float64)


def draw(transcript: Transcript, features: NDArray[np.floating], seconds_per_frame: float) -> str:
    """Return a piece of HTML: a box that scrolls sideways, with an SVG in it. Empty where there is no frame.

    features: (frames, n_mels), log-mel. The colour of a word tells its confidence; text, seconds and confidence appear
    where the pointer rests on it.
    """
    features = features[: round(LONGEST / seconds_per_frame)]
    if not len(features):
        return ""
    seconds = len(features) * seconds_per_frame
    top, width = ROW * ROWS, math.ceil(seconds * SCALE)
    words = [word for word in transcript.words if word.start < seconds]
    parts = [
        f'<image x="0" y="{top}" width="{width}" height="{HEIGHT}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{base64.b64encode(_png(_shades(features))).decode()}"/>',
        *(_word(word, row) for word, row in zip(words, _rows(words), strict=True)),
        *(_second(second) for second in range(math.ceil(seconds))),
    ]
    size = f'width="{width}" height="{top + HEIGHT + AXIS}"'
    svg = f'<svg {size} role="img" aria-label="Spectrogram with words">{"".join(parts)}</svg>'
    rest = "" if transcript.duration <= seconds + 1 else f" Only the first {seconds:.0f} seconds are drawn."
    return f'<div style="overflow-x: auto">{svg}</div><p>{LEGEND}{rest}</p>'


def _rows(words: Sequence[Word]) -> list[int]:
    """Return the row of each word, the lowest one, 0, where there is room; where there is none, the emptiest."""
    ends = [-math.inf] * ROWS
    rows = []
    for word in words:
        left = word.start * SCALE
        free = [row for row in range(ROWS) if ends[row] <= left]
        rows.append(free[0] if free else ends.index(min(ends)))
        ends[rows[-1]] = left + LETTER * (len(word.text) + 1)
    return rows


def _word(word: Word, row: int) -> str:
    top, left = ROW * (ROWS - row), word.start * SCALE
    colour = f"hsl({SURE * word.confidence:.0f} 70% 40%)"
    said = f"{word.text}: {word.start:.2f} to {word.end:.2f} s, confidence {word.confidence:.2f}"
    bottom = ROW * ROWS + HEIGHT
    return (
        f'<g class="word"><title>{html.escape(said)}</title>'
        f'<path d="M{left:.1f} {top - ROW + 4}V{bottom}" stroke="{colour}" stroke-opacity="0.6"/>'
        f'<rect x="{left:.1f}" y="{top - 3}" width="{max(2.0, (word.end - word.start) * SCALE):.1f}" height="3" '
        f'fill="{colour}"/>'
        f'<text x="{left + 3:.1f}" y="{top - 6}" fill="{colour}" font-size="13" font-weight="600">'
        f"{html.escape(word.text)}</text></g>"
    )


def _second(second: int) -> str:
    y = ROW * ROWS + HEIGHT + AXIS - 4
    return f'<text x="{second * SCALE + 2}" y="{y}" font-size="11" fill="currentColor" opacity="0.7">{second} s</text>'


def _shades(features: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return a picture, (n_mels, frames): the lowest band at the bottom; the quietest 5 % are 0, the loudest is 255."""
    low, high = np.percentile(features, 5), features.max()
    shares = np.clip((features - low) / max(float(high - low), 1e-6), 0, 1)
    return np.ascontiguousarray((255 * shares).astype(np.uint8).T[::-1])


def _png(shades: NDArray[np.uint8]) -> bytes:
    """Return a PNG file of a picture, (height, width), in colours from black over purple to yellow."""
    from PIL import Image  # which comes with gradio

    places = np.linspace(0, 255, len(_COLOURS))
    palette = np.stack([np.interp(np.arange(256), places, channel) for channel in _COLOURS.T], 1).astype(np.uint8)
    picture, file = Image.fromarray(shades, "P"), io.BytesIO()
    picture.putpalette(palette.tobytes())
    picture.save(file, "PNG")
    return file.getvalue()
