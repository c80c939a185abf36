"""The model card of a language model: data, cost, perplexities and the exact command."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samba_asr.evaluation.perplexity import TextScores
from samba_asr.training.card import provenance
from samba_asr.training.language_model.settings import LanguageTrainingConfig

EXPLANATION = (
    "A text's end counts as a token, a word and a character of its own. Perplexities per token compare models with one "
    "tokenizer, those per word and nats a character all models. Unknown: characters that the tokenizer never saw, of "
    "which the model need only say that there is one."
)


@dataclass(frozen=True)
class LanguageRunSummary:
    """What the model card says about a run."""

    config: LanguageTrainingConfig
    parameters: int
    steps: int
    epochs: float
    tokens: int
    minutes: float
    skipped: int
    stopped: str
    weights: str
    scores: Mapping[str, TextScores]
    environment: dict[str, Any]


def score_table(scores: Mapping[str, TextScores]) -> list[str]:
    """Return a Markdown table, a row for each set and, if several, one for all."""
    rows = dict(scores)
    if len(rows) > 1:
        every = list(rows.values())
        rows["all"] = sum(every[1:], every[0])
    lines = [
        "| set | texts | words | tokens | unknown | perplexity per token | perplexity per word | nats a character |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in rows.items():
        counts = f"{found.texts} | {found.words} | {found.tokens} | {found.unknown}"
        rates = f"{found.token_perplexity:.2f} | {found.word_perplexity:.2f} | {found.nats_per_character:.4f}"
        lines.append(f"| {name.replace('|', '/')} | {counts} | {rates} |")
    return lines


def language_model_card(run: LanguageRunSummary) -> str:
    """Return a checkpoint's README.md."""
    config, machine = run.config, run.environment["machine"]
    device = machine["gpu"] or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    mixer = config.model.mixer
    lines = [
        "# A Samba-ASR language model",
        "",
        f"{run.parameters / 1e6:.2f} M parameters: {config.model.n_layers} causal {mixer.kind} blocks of width "
        f"{config.model.d_model} over the {config.model.vocab_size} tokens of a recogniser "
        f"({_tokenizer(config)}), trained by `recipes/language_model/train.py`. Joint search can weigh texts with it; "
        "by itself it transcribes nothing.",
        "",
        "## Training data",
        "",
        *_data(config),
        "",
        "What the development sets say is not in it.",
        "",
        "## Training",
        "",
        f"- Steps: {run.steps} ({run.stopped}), {run.skipped} skipped; {run.tokens / 1e6:.2f} M tokens, "
        f"{run.epochs:.2f} epochs, in {run.minutes:.1f} minutes of wall-clock time, validation included.",
        *provenance(run.environment, device, run.weights, config.seed),
        "",
        "## Result",
        "",
        *score_table(run.scores),
        "",
        f"Of the development sets' transcripts. {EXPLANATION} `recipes/language_model/evaluate.py` measures others.",
        "",
    ]
    return "\n".join(lines)


def _tokenizer(config: LanguageTrainingConfig) -> str:
    name = config.recogniser if config.recogniser is not None else config.tokenizer
    assert name is not None
    return f"`{_short(name)}`"


def _data(config: LanguageTrainingConfig) -> list[str]:
    data, text = config.data, config.text
    lines = [f"- Transcripts of `{_short(path)}`{_times(data.train_repeats)}." for path in data.train_manifests]
    repeats = text.repeats or [1] * len(text.files)
    texts = [f"- Text: `{_short(file)}`{_times(count)}." for file, count in zip(text.files, repeats, strict=True)]
    return lines + texts


def _times(count: int) -> str:
    return f", {count} times an epoch" if count > 1 else ""


def _short(path: str) -> str:
    """Return a path's last part: where it lay concerns one machine."""
    return Path(path).name
