"""A whole training run of a language model, from texts to an exported checkpoint folder."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from samba_asr.evaluation.perplexity import TextScores
from samba_asr.model.language_model_checkpoint import save_language_model
from samba_asr.training.callbacks import list_checkpoints
from samba_asr.training.card import describe_environment
from samba_asr.training.language_model.card import LanguageRunSummary, language_model_card
from samba_asr.training.language_model.data import read_sets, read_tokenizer, read_training_texts
from samba_asr.training.language_model.loop import LanguageModelRun
from samba_asr.training.language_model.settings import LanguageTrainingConfig
from samba_asr.training.records import write_records
from samba_asr.training.resume import check_folder
from samba_asr.training.stopping import StopRequest

log = logging.getLogger(__name__)


def train_language_model(
    config: LanguageTrainingConfig, out: str | Path, resume: bool = False, command: Sequence[str] = ()
) -> dict[str, TextScores]:
    """Train a language model and export it to ``out/checkpoint``; return its scores on the development sets.

    Args and errors are those of :func:`samba_asr.training.run.train`.
    """
    out = Path(out)
    check_folder(out, resume)
    checkpoints = list_checkpoints(out / "checkpoints") if resume else []
    if resume and not checkpoints:
        log.info("%s has no checkpoint: starting anew", out)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = _device(config)
    tokenizer = read_tokenizer(config)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    dev = read_sets(config.data.dev_manifests, [], config.data.text_form)
    run = LanguageModelRun(config, tokenizer, dev, device, out)
    if checkpoints:
        run.load(checkpoints[-1])
        log.info("resuming from %s", checkpoints[-1])
    texts = read_training_texts(config, tokenizer)
    environment = describe_environment(command, device)
    write_records(out, config.to_dict(), environment)
    run.metrics.start(run.progress)
    stop = StopRequest(config.max_minutes)
    with stop.listening():
        run.train(texts, stop)
    weights, scores = run.choose_weights()
    log.info("exported: %s", weights)
    run.metrics.write_scores(run.progress, scores, exported=True)
    summary = LanguageRunSummary(
        config=config,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        steps=run.progress.step,
        epochs=run.progress.tokens / sum(len(text) + 1 for text in texts),
        tokens=run.progress.tokens,
        minutes=run.progress.minutes,
        skipped=run.progress.skipped,
        stopped=stop.reason or f"max_steps ({config.max_steps}) reached",
        weights=weights,
        scores=scores,
        environment=environment,
    )
    save_language_model(out / "checkpoint", run.model.cpu().eval(), tokenizer, language_model_card(summary))
    run.metrics.plot(out / "curves.png")
    return scores


def _device(config: LanguageTrainingConfig) -> torch.device:
    """Raises ValueError where the configured accelerator is not there."""
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("accelerator (gpu) cannot be used here; take auto or cpu")
    return torch.device("cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
