"""The steps, validations and checkpoints of a language model's run."""

import dataclasses
import logging
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from samba_asr.atomic import replacing
from samba_asr.config import LanguageModelConfig
from samba_asr.evaluation.perplexity import TextScores, score_texts
from samba_asr.model.language_model import LanguageModel
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.averaging import average_states
from samba_asr.training.callbacks import list_checkpoints, saved_step
from samba_asr.training.data import mix_seed
from samba_asr.training.language_model.data import spread, training_batches
from samba_asr.training.language_model.metrics import Metrics, Progress, mean_loss
from samba_asr.training.language_model.settings import LanguageTrainingConfig
from samba_asr.training.module import MAX_SKIPPED_IN_A_ROW, parameter_groups
from samba_asr.training.resume import check_text_form, differences, read_checkpoint, tokenizer_hash
from samba_asr.training.schedule import learning_rate_share, run_progress
from samba_asr.training.stopping import StopRequest

log = logging.getLogger(__name__)

WINDOW = 10
"""Steps in a row of metrics.csv."""


class LanguageModelRun:
    """Model, optimiser and progress of a run.

    Everything random in a step follows from the seed and the batch's position in the run, so that a resumed run repeats
    what the interrupted one would have done.
    """

    def __init__(
        self,
        config: LanguageTrainingConfig,
        tokenizer: Tokenizer,
        dev: Mapping[str, list[str]],
        device: torch.device,
        out: Path,
    ) -> None:
        self.config, self.tokenizer, self.dev, self.device = config, tokenizer, dev, device
        self.checkpoints = out / "checkpoints"
        torch.manual_seed(config.seed)
        self.model = LanguageModel(config.model).to(device)
        settings = config.optimiser
        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )
        self.progress = Progress()
        self.metrics = Metrics(out / "metrics.csv", dev)
        self._skipped_in_a_row = 0
        self._window: list[tuple[float, float, int]] = []
        """Loss, norm of the gradient and tokens of the steps since metrics.csv's last row."""
        self._seconds = 0.0

    def load(self, checkpoint: Path) -> None:
        """Take up the run where a checkpoint left it. Raises ValueError where that is of another model, tokenizer or
        form of text."""
        state = read_checkpoint(checkpoint)
        saved = state["hyper_parameters"]
        if saved["tokenizer_sha256"] != tokenizer_hash(self.tokenizer):
            raise ValueError(
                f"the tokenizer is another one than that of {checkpoint}: resume with the run's own, or choose "
                "another --out"
            )
        check_text_form(checkpoint, saved["training"], self.config.data.text_form)
        before = LanguageModelConfig.from_dict(saved["training"]["model"]).to_dict()
        changes = list(differences("model", before, self.config.model.to_dict()))
        try:
            if changes:
                raise RuntimeError("; ".join(changes))
            self.model.load_state_dict(state["state_dict"])
        except RuntimeError as error:
            raise ValueError(
                f"the configured model is another one than that of {checkpoint}: {error}; "
                "resume with the run's own settings (its config.yaml), or choose another --out"
            ) from error
        (optimiser_state,) = state["optimizer_states"]
        self.optimiser.load_state_dict(optimiser_state)
        self.progress = Progress(**state["progress"])

    def save(self) -> None:
        """Write a checkpoint to resume from; keep the newest."""
        folder = self.checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "state_dict": self.model.state_dict(),
            "optimizer_states": [self.optimiser.state_dict()],
            "progress": dataclasses.asdict(self.progress),
            "hyper_parameters": {
                "training": self.config.to_dict(),
                "tokenizer_sha256": tokenizer_hash(self.tokenizer),
            },
        }
        with replacing(folder / f"step={self.progress.step}.ckpt") as path:
            torch.save(state, path)
        for old in list_checkpoints(folder)[: -self.config.average_last]:
            old.unlink()

    def train(self, texts: Sequence[Sequence[int]], stop: StopRequest) -> None:
        """Make the run's remaining steps; stop is asked after each."""
        config, progress = self.config, self.progress
        before, started, mark = progress.minutes, time.monotonic(), time.monotonic()
        batches = training_batches(texts, config.batch_tokens, config.seed, progress.position)
        stop.look_at_clock(progress.minutes)  # a run that is resumed when its time was over
        terminal = sys.stderr.isatty()
        with tqdm(
            total=config.max_steps,
            initial=progress.step,
            unit="step",
            mininterval=0.5 if terminal else 20.0,
            miniters=1,
            dynamic_ncols=terminal,
            file=sys.stderr,
        ) as bar:
            while progress.step < config.max_steps and stop.reason is None:
                made = self.make_step(*next(batches))
                now = time.monotonic()
                progress.minutes = before + (now - started) / 60
                self._seconds += now - mark
                stop.look_at_clock(progress.minutes)
                last = progress.step >= config.max_steps or stop.reason is not None
                if made and (progress.step % WINDOW == 0 or last):
                    bar.set_postfix_str(self._write_window(), refresh=False)
                bar.update(int(made))
                if made and (progress.step % config.validate_every == 0 and not last):
                    self._validate()
                if (made and progress.step % config.checkpoint_every == 0) or last:
                    self.save()
                mark = time.monotonic()

    def make_step(self, tokens: Tensor, lengths: Tensor) -> bool:
        """Learn from a batch; return whether that was possible: not if the loss or its gradient is not finite."""
        config, progress = self.config, self.progress
        torch.manual_seed(mix_seed(config.seed, progress.position))
        learning_rate = self._learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        count = int(lengths.sum()) + len(lengths)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = self.model.losses(tokens.to(self.device), lengths.to(self.device)).sum() / count
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optimiser.gradient_clip)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            self.optimiser.step()
            self._window.append((loss.item(), float(norm), count))
            progress.step += 1
            progress.tokens += count
            self._skipped_in_a_row = 0
        else:
            self._skip(loss.item())
        self.optimiser.zero_grad()
        progress.position += 1
        return finite

    def _learning_rate(self) -> float:
        config, progress, settings = self.config, self.progress, self.config.optimiser
        over = run_progress(progress.step, config.max_steps, progress.minutes, config.max_minutes)
        share = learning_rate_share(
            progress.step, over, warmup_steps=settings.warmup_steps, final_share=settings.final_share
        )
        return settings.learning_rate * share

    def _skip(self, loss: float) -> None:
        self.progress.skipped += 1
        self._skipped_in_a_row += 1
        what = "the gradient" if math.isfinite(loss) else f"the loss ({loss})"
        log.warning("step %d skipped: %s is not finite", self.progress.step, what)
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"{what} was not finite {MAX_SKIPPED_IN_A_ROW} times in a row, at step {self.progress.step}: "
                f"lower optimiser.learning_rate ({self.config.optimiser.learning_rate}), then --resume"
            )

    def _write_window(self) -> str:
        """Write a row of metrics.csv for the steps since the last one; return it in words."""
        losses, norms, tokens = zip(*self._window, strict=True)
        loss, speed = statistics.fmean(losses), sum(tokens) / self._seconds
        learning_rate = self.optimiser.param_groups[0]["lr"]
        rates = {"lr": learning_rate, "tokens_per_second": speed}
        self.metrics.write(self.progress, {**rates, "loss": loss, "grad_norm": statistics.fmean(norms)})
        self._window, self._seconds = [], 0.0
        return f"loss {loss:.3f}, lr {learning_rate:.1e}, {speed:.0f} tokens/s"

    def _validate(self) -> None:
        scores = self.score({name: spread(texts, self.config.data.dev_utterances) for name, texts in self.dev.items()})
        self.metrics.write_scores(self.progress, scores)
        words = ", ".join(f"{name} {found.word_perplexity:.1f}" for name, found in scores.items())
        line = f"step {self.progress.step}: dev loss {mean_loss(scores):.3f}; perplexity per word: {words}"
        tqdm.write(line, file=sys.stderr)

    def score(self, sets: Mapping[str, list[str]]) -> dict[str, TextScores]:
        """Return what the model makes of each set, computed in float32."""
        return {
            name: score_texts(self.model, self.tokenizer, texts, self.config.batch_tokens)
            for name, texts in sets.items()
        }

    def choose_weights(self) -> tuple[str, dict[str, TextScores]]:
        """Load the average of the checkpoints into the model, or the last of them if its dev loss is lower.

        Returns what was chosen, in words, and its scores on the whole development sets.
        """
        paths = list_checkpoints(self.checkpoints)
        last = read_checkpoint(paths[-1])["state_dict"]
        self.model.load_state_dict(last)
        last_scores = self.score(self.dev)
        name = f"step {saved_step(paths[-1])}"
        if len(paths) == 1:
            return name, last_scores
        # both names of the embeddings, or the last ones' would come over their average
        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        self.model.load_state_dict(average_states((read_checkpoint(path)["state_dict"] for path in paths), names))
        scores = self.score(self.dev)
        losses = f"(dev loss {mean_loss(scores):.4f}; {name}: {mean_loss(last_scores):.4f})"
        what = f"the average of steps {', '.join(str(saved_step(path)) for path in paths)} {losses}"
        if mean_loss(scores) <= mean_loss(last_scores):
            return what, scores
        self.model.load_state_dict(last)
        return f"{name}, which is better than {what}", last_scores
