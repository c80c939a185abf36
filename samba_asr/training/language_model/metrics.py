"""The metrics.csv of a language model's run, and its picture."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from samba_asr.evaluation.perplexity import TextScores
from samba_asr.training.callbacks import read_metrics, write_metrics
from samba_asr.training.curves import Panel, plot_curves

COLUMNS = ("step", "minutes", "lr", "loss", "grad_norm", "tokens", "tokens_per_second", "skipped", "dev_loss")
"""Of metrics.csv, before the perplexity per word of each development set and ``exported``. Losses are nats a token,
``loss`` the mean over the steps since the row before that had one. A cell without a value is empty. The last row has
the scores of the exported weights on the whole development sets, and a 1 under ``exported``."""


@dataclass
class Progress:
    """How far a run is. Saved in every checkpoint."""

    step: int = 0
    """Optimiser steps made."""
    position: int = 0
    """Batches drawn, those of skipped steps included."""
    minutes: float = 0.0
    """Wall-clock time."""
    tokens: int = 0
    """Learnt from so far, ends included, padding left out."""
    skipped: int = 0
    """Steps left out because the loss or its gradient was not finite."""


class Metrics:
    """Writes metrics.csv; dev_sets: the development sets' names."""

    def __init__(self, path: Path, dev_sets: Iterable[str]) -> None:
        self.path = path
        self.dev_sets = list(dev_sets)
        self.columns = (*COLUMNS, *map(_column, self.dev_sets), "exported")

    def start(self, progress: Progress) -> None:
        """Begin the file, or take the rows out that a resumed run will write again."""
        rows = read_metrics(self.path) if self.path.exists() and progress.step else []
        kept = [row for row in rows if row["step"] <= progress.step and "exported" not in row]
        rows = [{name: row[name] for name in self.columns if name in row} for row in kept]
        write_metrics(self.path, rows, self.columns)

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Add a row."""
        place = {"step": progress.step, "minutes": round(progress.minutes, 3)}
        counts = {"tokens": progress.tokens, "skipped": progress.skipped}
        numbers = {name: float(f"{value:.6g}") for name, value in values.items()}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({**place, **counts, **numbers})

    def write_scores(self, progress: Progress, scores: Mapping[str, TextScores], exported: bool = False) -> None:
        """Add a row for a validation, or for the exported weights."""
        perplexities = {_column(name): found.word_perplexity for name, found in scores.items()}
        last = {"exported": 1} if exported else {}
        self.write(progress, {"dev_loss": mean_loss(scores), **perplexities, **last})

    def plot(self, picture: Path) -> None:
        """Draw the file as a PNG."""
        panels: list[Panel] = [
            ("nats a token", [("loss", "train"), ("dev_loss", "dev")]),
            ("dev perplexity per word", [(_column(name), name) for name in self.dev_sets]),
            ("learning rate", [("lr", "learning rate")]),
            ("tokens a second", [("tokens_per_second", "training")]),
        ]
        plot_curves(self.path, picture, panels)


def mean_loss(scores: Mapping[str, TextScores]) -> float:
    """Return the nats a token over all sets."""
    every = list(scores.values())
    return sum(every[1:], every[0]).nats_per_token


def _column(name: str) -> str:
    return f"dev_perplexity {name}"
