"""What happens beside the training steps: metrics, checkpoints, and stopping in good order."""

import csv
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from tqdm import tqdm

from samba_asr.training.module import DevScores, Progress, TrainingModule
from samba_asr.training.stopping import StopRequest

COLUMNS = (
    "step",
    "position",
    "minutes",
    "lr",
    "loss",
    "ctc",
    "decoder",
    "teacher",
    "reading",
    "expectation",
    "text",
    "consistency",
    "minimum_wer",
    "grad_norm",
    "audio_hours",
    "audio_seconds_per_second",
    "skipped",
    "dev_loss",
    "dev_ctc",
    "dev_decoder",
    "dev_wer",
    "exported",
)
"""Of metrics.csv. Losses are means over the steps since the row before that had them, and ``loss`` is all that was
lowered: what the transcripts give, and by weight the distance from a teacher's states (``teacher``) and from what its
decoder expects (``reading``, the encoder's; ``expectation``, the decoder's), the decoder's loss on text (``text``), the
divergence between two views (``consistency``) and the word errors to expect of joint search (``minimum_wer``). A cell
without a value is empty. The last row has the scores of the exported weights, and a 1 under ``exported``."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv, without their empty cells."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def write_metrics(path: Path, rows: list[dict[str, float]], columns: Sequence[str] = COLUMNS) -> None:
    """Write metrics.csv anew."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_exported(path: Path, step: int, progress: Progress, scores: DevScores) -> None:
    """End metrics.csv with the scores of the exported weights, instead of those of an earlier export."""
    rows = [row for row in read_metrics(path) if "exported" not in row]
    write_metrics(path, [*rows, {**_row(step, progress, _dev_cells(scores)), "exported": 1}])


def _row(step: int, progress: Progress, values: Mapping[str, float]) -> dict[str, float]:
    return {
        "step": step,
        "position": progress.position,
        "minutes": round(progress.minutes, 3),
        "audio_hours": round(progress.audio_seconds / 3600, 4),
        "skipped": progress.skipped,
        **{name: float(f"{value:.6g}") for name, value in values.items()},
    }


def _dev_cells(scores: DevScores) -> dict[str, float]:
    cells = {"dev_loss": scores.loss, "dev_ctc": scores.ctc, "dev_decoder": scores.decoder}
    return cells if scores.wer is None else {**cells, "dev_wer": scores.wer}


class Metrics(lightning.Callback):
    """Writes metrics.csv and draws the progress bar (on stderr)."""

    def __init__(self, path: Path, every: int = 10) -> None:
        self.path = path
        self.every = every
        self._values: dict[str, list[float]] = {}
        self._audio_seconds = 0.0
        self._seconds = 0.0
        self._learning_rate = 0.0
        self._mark = time.monotonic()
        self._bar: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        step = trainer.global_step
        rows = read_metrics(self.path) if self.path.exists() else []
        write_metrics(self.path, [row for row in rows if row["step"] <= step and "exported" not in row])
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=step,
            unit="step",
            mininterval=0.5 if terminal else 20.0,
            miniters=1,
            dynamic_ncols=terminal,
            file=sys.stderr,
        )
        self._mark = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.monotonic()
        self._seconds += now - self._mark
        self._mark = now
        if math.isfinite(outputs["total"]) and math.isfinite(outputs["grad_norm"]):
            for name in outputs.keys() - {"lr", "audio_seconds"}:
                self._values.setdefault(name, []).append(outputs[name])
        self._audio_seconds += outputs["audio_seconds"]
        self._learning_rate = outputs["lr"]
        self._bar.n = trainer.global_step
        if trainer.global_step and trainer.global_step % self.every == 0 and self._values:
            self._write_window(trainer, pl_module)
        self._bar.update(0)

    def _write_window(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        means = {name: statistics.fmean(values) for name, values in self._values.items()}
        loss, speed = means.pop("total"), self._audio_seconds / self._seconds
        rates = {"lr": self._learning_rate, "audio_seconds_per_second": speed}
        self._append(trainer, pl_module, {**means, **rates, "loss": loss})
        self._bar.set_postfix_str(f"loss {loss:.3f}, lr {self._learning_rate:.1e}, {speed:.0f} audio s/s", False)
        self._values, self._audio_seconds, self._seconds = {}, 0.0, 0.0

    def _append(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, values: Mapping[str, float]
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        row = _row(trainer.global_step, pl_module.progress, values)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        scores = pl_module.dev_scores
        if scores is not None:
            self._append(trainer, pl_module, _dev_cells(scores))
            wer = "-" if scores.wer is None else f"{100 * scores.wer:.1f} %"
            line = f"step {trainer.global_step}: dev loss {scores.loss:.3f} "
            line += f"(ctc {scores.ctc:.3f}, decoder {scores.decoder:.3f}), WER {wer}"
            tqdm.write(line, file=sys.stderr)
        self._mark = time.monotonic()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._values:
            self._write_window(trainer, pl_module)
        self._bar.close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first."""
    return sorted(folder.glob("step=*.ckpt"), key=saved_step)


def saved_step(checkpoint: Path) -> int:
    """Return the step that a checkpoint's name says."""
    return int(checkpoint.stem.removeprefix("step="))


class Checkpoints(lightning.Callback):
    """Saves a checkpoint every so many steps, and a last one however the training ends; keeps the newest."""

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        last = trainer.should_stop or trainer.global_step >= trainer.max_steps
        if trainer.global_step and (trainer.global_step % self.every == 0 or last):
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        path = self.folder / f"step={trainer.global_step}.ckpt"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(path)
            for old in list_checkpoints(self.folder)[: -self.keep]:
                old.unlink()


class GracefulStop(lightning.Callback):
    """Ends the training after the current step where a :class:`StopRequest` has a reason.

    Must come before :class:`Checkpoints`, which saves the last step.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self._request = StopRequest(max_minutes)

    @property
    def reason(self) -> str | None:
        """Why the training was ended, None if it was not."""
        return self._request.reason

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._request.listen()  # Lightning restores what was there before it started

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._request.look_at_clock(pl_module.progress.minutes)
        if self.reason is not None:
            trainer.should_stop = True
