"""Pictures of a report, as PNG files; matplotlib's objects only, so nothing needs a display or changes global state."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import librosa.display
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from samba_asr.config import FeatureConfig
from samba_asr.evaluation.confidence import Bin
from samba_asr.evaluation.wer import DurationBucket

TITLE_WIDTH, TITLE_LINES = 110, 5


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _title_lines(label: str, text: str) -> str:
    filled = textwrap.wrap(f"{label}  {text}", TITLE_WIDTH, max_lines=TITLE_LINES, placeholder=" ...")
    return "\n".join(filled)


def plot_spectrogram(
    path: str | Path, features: np.ndarray, config: FeatureConfig, reference: str, hypothesis: str
) -> None:
    """Draw one utterance as the model sees it, reference and hypothesis above.

    features: (frames, n_mels), normalised log-mel.
    """
    title = _title_lines("REF", reference) + "\n" + _title_lines("HYP", hypothesis)
    figure = _figure(10, 3.2 + 0.2 * title.count("\n"))
    axes = figure.add_subplot()
    image = librosa.display.specshow(
        features.T,
        x_axis="time",
        y_axis="mel",
        sr=config.sample_rate,
        hop_length=config.hop_length,
        fmax=config.sample_rate / 2,
        cmap="magma",
        ax=axes,
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("Hz")
    # a dollar sign is a word here, not mathematics
    axes.set_title(title, fontsize=8, loc="left", family="monospace", parse_math=False)
    figure.colorbar(image, ax=axes, label="log-mel")
    figure.savefig(path, dpi=100)


def bucket_name(bucket: DurationBucket) -> str:
    """Return the bucket's durations, as "5-10 s" or "over 30 s"."""
    if math.isinf(bucket.high):
        return f"over {bucket.low:g} s"
    return f"{bucket.low:g}-{bucket.high:g} s"


def plot_wer_by_duration(path: str | Path, buckets: Sequence[DurationBucket], title: str) -> None:
    """Draw each bucket's word error rate as a bar with the number of its utterances; no bar for an infinite rate."""
    rates = [100 * bucket.wer.rate for bucket in buckets]
    heights = [rate if math.isfinite(rate) else 0.0 for rate in rates]
    figure = _figure(max(5.0, 1.1 * len(buckets)), 3.5)
    axes = figure.add_subplot()
    bars = axes.bar([bucket_name(bucket) for bucket in buckets], heights, color="tab:blue")
    counts = [bucket.utterances for bucket in buckets]
    axes.bar_label(bars, [f"{rate:.1f} %\nn={n}" for rate, n in zip(rates, counts, strict=True)], fontsize=8)
    axes.margins(y=0.2)
    axes.set_ylabel("WER, %")
    axes.set_title(title, parse_math=False)
    figure.savefig(path, dpi=100)


def plot_reliability(path: str | Path, bins: Sequence[Bin], title: str) -> None:
    """Draw the share of right words over their confidence, a point a bin; on the diagonal both are the same."""
    figure = _figure(4.5, 4.5)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="tab:gray", linestyle="--", linewidth=1, label="as it should be")
    points = [(each.confidence, each.right) for each in bins]
    axes.plot(*zip(*points, strict=True), color="tab:blue", marker="o", label=f"each {bins[0].words} words")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right words", aspect="equal")
    axes.set_title(title, parse_math=False)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=100)
