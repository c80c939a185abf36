"""Where a run came from (versions.json) and what came of it (the checkpoint's model card)."""

import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from samba_asr import __version__
from samba_asr.config import ModelConfig
from samba_asr.evaluation.environment import available_cores, git_commit, package_versions, processor_name
from samba_asr.text.normalization import TextForm
from samba_asr.training.config import TrainingConfig
from samba_asr.training.manifest import Utterance
from samba_asr.training.module import DevScores, Progress

_PACKAGES = ("torch", "torchaudio", "lightning", "numpy", "sentencepiece", "librosa", "soundfile", "soxr", "jiwer")
_FORMS: dict[TextForm, str] = {
    "spoken": "lower-case words without punctuation",
    "written": "words with case and punctuation (. , ? ! and hyphens inside words)",
}
"""What a model writes, by data.text_form."""


def describe_environment(command: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Return versions, git commit, command line and machine, for versions.json; device: what trains."""
    return {
        "samba_asr": __version__,
        "python": platform.python_version(),
        "packages": package_versions(_PACKAGES),
        "git_commit": git_commit(),
        "command": shlex.join(command),
        "machine": {
            "system": platform.platform(),
            "processor": processor_name(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
    }


@dataclass(frozen=True)
class RunSummary:
    """What the model card says about a run."""

    training: TrainingConfig
    model: ModelConfig
    parameters: int
    train: Sequence[Utterance]
    dev: Sequence[Utterance]
    steps: int
    progress: Progress
    stopped: str
    weights: str
    scores: DevScores
    environment: dict[str, Any]


def provenance(environment: Mapping[str, Any], device: str, weights: str, seed: int) -> list[str]:
    """Return a card's lines on where a run's weights come from: :func:`describe_environment`'s, and which they are."""
    return [
        f"- Machine: {device}.",
        f"- Weights: {weights}.",
        f"- Samba-ASR {environment['samba_asr']}, commit {environment['git_commit'] or 'unknown'}, "
        f"torch {environment['packages'].get('torch', '?')}, seed {seed}.",
        "",
        "The command:",
        "",
        "```",
        environment["command"],
        "```",
    ]


def model_card(run: RunSummary) -> str:
    """Return a checkpoint's README.md: data, cost, result and the exact command."""
    machine = run.environment["machine"]
    device = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    audio_hours = run.progress.audio_seconds / 3600
    wer = "no words to score" if run.scores.wer is None else f"{100 * run.scores.wer:.2f} %"
    lines = [
        "# A Samba-ASR checkpoint",
        "",
        f"A state-space speech recogniser with {run.parameters / 1e6:.2f} M parameters, trained by "
        f"`recipes/librispeech/train.py`. It transcribes English speech to {_FORMS[run.training.data.text_form]}.",
        "",
        "## Training data",
        "",
        *_corpus_table(run.train),
        "",
        *_origins(run.training),
        "## Training",
        "",
        f"- Steps: {run.steps} ({run.stopped}), {run.progress.skipped} skipped; {audio_hours:.2f} h of audio seen in "
        f"{run.progress.minutes:.1f} minutes of wall-clock time, validation included.",
        *provenance(run.environment, device, run.weights, run.training.seed),
        "",
        "## Result",
        "",
        f"On {len(run.dev)} utterances ({_hours(run.dev):.2f} h) of the development sets, best path of the CTC head: "
        f"word error rate {wer} (errors summed over words summed, both sides in whisper-normalizer's English form), "
        f"loss {run.scores.loss:.3f} (CTC {run.scores.ctc:.3f}, decoder {run.scores.decoder:.3f}, per token). "
        "`recipes/librispeech/evaluate.py` scores whole sets.",
        "",
    ]
    return "\n".join(lines)


def _origins(training: TrainingConfig) -> list[str]:
    """Return a line for each thing beside transcripts that the weights come from: its licence counts too."""
    origins = {
        "The encoder began as": training.encoder.weights,
        "All weights, but for what is named here, began as": training.init_from,
        "Kept near the teacher of": training.encoder.teacher_run,
        "A teacher listened along": training.encoder.teacher,
        "Its decoder read along, in the tokens of": training.encoder.teacher_tokenizer,
        "Text without recordings": ", ".join(training.text.files),
    }
    lines = [f"- {what}: `{where}`." for what, where in origins.items() if where]
    return [*lines, ""] if lines else []


def _hours(utterances: Sequence[Utterance]) -> float:
    return sum(utterance.duration for utterance in utterances) / 3600


def _corpus_table(utterances: Sequence[Utterance]) -> list[str]:
    counts = Counter(utterance.corpus for utterance in utterances)
    rows = ["| corpus | utterances | hours |", "|---|---|---|"]
    for corpus, count in sorted(counts.items()):
        hours = _hours([utterance for utterance in utterances if utterance.corpus == corpus])
        rows.append(f"| {corpus or 'unnamed'} | {count} | {hours:.2f} |")
    return [*rows, f"| all | {len(utterances)} | {_hours(utterances):.2f} |"]
