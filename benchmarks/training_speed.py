"""Audio seconds a second of training: loading, augmentation, joint loss, backward and optimiser.

python benchmarks/training_speed.py --manifests OUT/librispeech-train-clean-5.jsonl --tokenizer OUT/tokenizer.model

GOMP_SPINCOUNT=10000 before it, which train.py sets by itself, keeps other processes from slowing it to a crawl.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from typing import Any, get_args

import lightning
import torch
from torch.profiler import ProfilerActivity, profile

from samba_asr.config import PRESETS, MixerKind
from samba_asr.model.asr import SambaASR
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.config import DataConfig, TrainingConfig
from samba_asr.training.data import read_manifests, select_utterances
from samba_asr.training.module import TrainingModule
from samba_asr.training.run import make_trainer, quiet_lightning, train_loader


class Stopwatch(lightning.Callback):
    """Notes the time and the audio of every step, and profiles one step if asked."""

    def __init__(self, profiled_step: int | None) -> None:
        self.profiled_step = profiled_step
        self.table: str | None = None
        self.steps: list[tuple[float, float]] = []  # wall-clock seconds, audio seconds
        self.started = time.perf_counter()
        self._profile: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.profiled_step:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
            self._profile.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            self.table = self._profile.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=48)
            self._profile = None
        now = time.perf_counter()
        self.steps.append((now - self.started, outputs["audio_seconds"]))
        self.started = now


def main() -> None:
    """Print the speed, and with --profile the operations of one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifests", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    of = "of encoder and decoder; hydra of the encoder alone, with a decoder of mamba2"
    parser.add_argument("--mixer", choices=get_args(MixerKind), default="mamba2", help=of)
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own number")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--warmup", type=int, default=10, help="first steps that do not count")
    parser.add_argument("--steps", type=int, default=100, help="steps that count")
    parser.add_argument("--profile", action="store_true", help="print a table of one further step")
    arguments = parser.parse_args()

    quiet_lightning()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tokenizer = Tokenizer.load(arguments.tokenizer)
    config = TrainingConfig(
        model=_model_config(arguments, tokenizer),
        data=DataConfig(
            train=arguments.manifests,
            dev=arguments.manifests,
            tokenizer=arguments.tokenizer,
            batch_seconds=arguments.batch_seconds,
            num_workers=arguments.workers,
        ),
        max_steps=arguments.warmup + arguments.steps + arguments.profile,
        precision=arguments.precision,
        accelerator=arguments.accelerator,
    )
    selection = select_utterances(
        read_manifests(arguments.manifests), tokenizer, config.model, min_duration=0.3, max_duration=20.0, fastest=1.1
    )
    torch.manual_seed(0)
    module = TrainingModule(config, SambaASR(config.model), tokenizer, [])
    stopwatch = Stopwatch(arguments.warmup + arguments.steps if arguments.profile else None)
    trainer = make_trainer(config, max_epochs=-1, max_steps=config.max_steps, callbacks=[stopwatch])
    used_cpu = time.process_time()
    trainer.fit(module, train_loader(config, selection, 0, trainer.strategy.root_device.type == "cuda"))
    used_cpu = time.process_time() - used_cpu
    counted = stopwatch.steps[arguments.warmup : arguments.warmup + arguments.steps]
    median = statistics.median(audio / seconds for seconds, audio in counted)
    audio = sum(audio for _, audio in stopwatch.steps)
    print(
        f"{arguments.preset}, {arguments.mixer}, {trainer.strategy.root_device}, {torch.get_num_threads()} threads, "
        f"{arguments.workers} workers, {arguments.batch_seconds:g} s batches: {median:.1f} audio seconds a second "
        f"(median of {len(counted)} steps), {audio / used_cpu:.1f} a second of this process's CPU time"
    )
    if stopwatch.table:
        print(stopwatch.table)


def _model_config(arguments: argparse.Namespace, tokenizer: Tokenizer) -> Any:
    preset = PRESETS[arguments.preset]
    causal = "mamba2" if arguments.mixer == "hydra" else arguments.mixer
    parts = {
        name: dataclasses.replace(part, mixer=dataclasses.replace(part.mixer, kind=kind))
        for name, part, kind in (("encoder", preset.encoder, arguments.mixer), ("decoder", preset.decoder, causal))
    }
    return dataclasses.replace(preset, vocab_size=tokenizer.vocab_size, **parts)


if __name__ == "__main__":
    sys.exit(main())
