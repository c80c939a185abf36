"""Pictures of a run's metrics."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from samba_asr.training.callbacks import read_metrics

Panel = tuple[str, Sequence[tuple[str, str]]]
"""A title, and the columns drawn below it with their labels."""

_PANELS: Sequence[Panel] = (
    (
        "loss per token",
        (
            ("loss", "train"),
            ("ctc", "train, CTC"),
            ("decoder", "train, decoder"),
            ("reading", "train, what the teacher's decoder expects of the states"),
            ("expectation", "train, what it expects of the next token"),
            ("text", "train, decoder on text"),
            ("consistency", "train, between views"),
            ("minimum_wer", "train, word errors to expect"),
            ("dev_loss", "dev"),
            ("dev_ctc", "dev, CTC"),
            ("dev_decoder", "dev, decoder"),
        ),
    ),
    ("dev word error rate, %", (("dev_wer", "CTC, best path"),)),
    ("learning rate", (("lr", "learning rate"),)),
    ("audio seconds a second", (("audio_seconds_per_second", "training"),)),
)


def plot_curves(metrics: Path, picture: Path, panels: Sequence[Panel] = _PANELS) -> None:
    """Draw four panels over the steps of a metrics.csv as a PNG: a recogniser's losses, word error rate, learning rate
    and speed, if nothing else is asked for."""
    rows = read_metrics(metrics)
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for column, label in curves:
            points = [(row["step"], row[column]) for row in rows if column in row]
            if points:
                steps, values = zip(*points, strict=True)
                if column == "dev_wer":
                    values = tuple(100 * value for value in values)
                dev = column.startswith("dev_")
                axes.plot(steps, values, label=label, linewidth=1, marker="o" if dev else None, markersize=3)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        if len(curves) > 1 and axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(picture, dpi=120)
