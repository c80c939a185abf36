"""A whole training run, from manifests to an exported checkpoint folder."""

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import save_checkpoint
from samba_asr.model.checkpoint_files import copy_lexicon
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.averaging import average_states
from samba_asr.training.batching import BatchSequence, dev_batches
from samba_asr.training.callbacks import (
    Checkpoints,
    GracefulStop,
    Metrics,
    list_checkpoints,
    saved_step,
    write_exported,
)
from samba_asr.training.card import RunSummary, describe_environment, model_card
from samba_asr.training.config import TrainingConfig
from samba_asr.training.curves import plot_curves
from samba_asr.training.data import (
    AudioCache,
    Selection,
    SpeechDataset,
    make_loader,
    make_waveform_augment,
    read_manifests,
    select_utterances,
)
from samba_asr.training.module import DevScores, TrainingModule
from samba_asr.training.records import write_records
from samba_asr.training.resume import check_folder, check_same_run, read_checkpoint
from samba_asr.training.start import fitted, load_encoder, load_initial
from samba_asr.training.text import TextBatches, read_sentences
from samba_asr.training.whisper.teaching import build_matching

log = logging.getLogger(__name__)

STATISTICS_UTTERANCES = 1_000
_MODEL_PREFIX = "model."


def train(config: TrainingConfig, out: str | Path, resume: bool = False, command: Sequence[str] = ()) -> DevScores:
    """Train a model and export it to ``out/checkpoint``; return its scores on the development utterances.

    Args:
        config: all settings.
        out: the run's folder. Must not exist yet, or be empty, unless ``resume``.
        resume: continue from the newest checkpoint in ``out``; from the start if there is none.
        command: command line, for the records.

    Raises:
        ValueError, FileNotFoundError: settings, files or data that cannot be used.
        FloatingPointError: losses or gradients were not finite too often in a row.
    """
    out = Path(out)
    last = _open_run(out, resume)
    quiet_lightning()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if config.precision == "bf16":
        torch.backends.cuda.matmul.allow_tf32 = True  # of the scans' float32 products on a GPU, still finer than bf16
    tokenizer = Tokenizer.load(config.data.tokenizer)
    if config.model.vocab_size != tokenizer.vocab_size:
        log.info("vocab_size: %d, from the tokenizer", tokenizer.vocab_size)
    config = fitted(config, tokenizer)
    stop = GracefulStop(config.max_minutes)
    trainer = _run_trainer(config, out, stop)  # a missing accelerator shows before the work
    if last is not None:
        check_same_run(last, config, tokenizer)
    _check_text_form(config, tokenizer)
    train_set, dev_set = _select(config, tokenizer)
    torch.manual_seed(config.seed)
    model = SambaASR(config.model)
    if last is None and config.init_from is not None:
        load_initial(model, config.init_from, config, tokenizer)
    if last is None and config.encoder.weights is not None:
        load_encoder(model, config)
    if last is None and config.init_from is None and config.model.features.normalisation == "global":
        set_global_statistics(model, train_set, config.seed)
    matching = build_matching(config, train_set, tokenizer)
    module = TrainingModule(config, model, tokenizer, dev_set.utterances, _text(config, tokenizer), matching)
    start = 0 if last is None else _load_weights(module, last)
    environment = describe_environment(command, trainer.strategy.root_device)
    write_records(out, config.to_dict(), environment)
    if last is None:
        (out / "metrics.csv").unlink(missing_ok=True)
    else:
        log.info("resuming from %s", last)
    loader = train_loader(config, train_set, start, trainer.strategy.root_device.type == "cuda")
    trainer.fit(module, loader, _dev_loader(config, dev_set), ckpt_path=last, weights_only=True)
    stopped = stop.reason or f"max_steps ({config.max_steps}) reached"
    weights, scores = choose_weights(config, module, dev_set, list_checkpoints(out / "checkpoints"))
    log.info("exported: %s; dev loss %.3f", weights, scores.loss)
    last_step = saved_step(list_checkpoints(out / "checkpoints")[-1])
    if last_step <= config.decoder_from_step and model.config.search.search != "ctc":
        log.warning("the run ended before decoder_from_step (%d): its search is ctc", config.decoder_from_step)
        search = dataclasses.replace(model.config.search, search="ctc")
        model.config = dataclasses.replace(model.config, search=search)
    write_exported(out / "metrics.csv", last_step, module.progress, scores)
    summary = RunSummary(
        training=config,
        model=model.config,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        train=train_set.utterances,
        dev=dev_set.utterances,
        steps=last_step,
        progress=module.progress,
        stopped=stopped,
        weights=weights,
        scores=scores,
        environment=environment,
    )
    save_checkpoint(out / "checkpoint", model.cpu().eval(), tokenizer, model_card(summary))
    if config.init_from is not None:
        copy_lexicon(config.init_from, out / "checkpoint")
    plot_curves(out / "metrics.csv", out / "curves.png")
    return scores


def _open_run(out: Path, resume: bool) -> Path | None:
    """Return the checkpoint to resume from, None to start anew."""
    check_folder(out, resume)
    if not resume:
        return None
    checkpoints = list_checkpoints(out / "checkpoints")
    if not checkpoints:
        log.info("%s has no checkpoint: starting anew", out)
        return None
    return checkpoints[-1]


def quiet_lightning() -> None:
    """Keep Lightning's notices and advice out of the log."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")


def _check_text_form(config: TrainingConfig, tokenizer: Tokenizer) -> None:
    if config.data.text_form == "written" and not any(char.isupper() for piece in tokenizer.pieces() for char in piece):
        raise ValueError(
            f"data.text_form (written) needs a tokenizer that knows capitals; {config.data.tokenizer} was trained on "
            "text without: pseudo_label.py --vocab_size makes one, or prepare.py --text-form written"
        )


def _select(config: TrainingConfig, tokenizer: Tokenizer) -> tuple[Selection, Selection]:
    data = config.data
    select = partial(
        select_utterances,
        tokenizer=tokenizer,
        model=config.model,
        min_duration=data.min_duration,
        max_duration=data.max_duration,
        text_form=data.text_form,
    )
    train_set = select(read_manifests(data.train_manifests), fastest=max(1.0, *data.speed_factors))
    dev_set = select(read_manifests(data.dev_manifests))
    log.info("training: %s", train_set.describe())
    log.info("development: %s", dev_set.describe())
    for name, selection in (("data.train", train_set), ("data.dev", dev_set)):
        if not selection.utterances:
            raise ValueError(f"no utterance of {name} can be used: {selection.describe()}")
        missing = [utterance.audio for utterance in selection.utterances if not Path(utterance.audio).is_file()]
        if missing:
            raise FileNotFoundError(f"{len(missing)} audio files of {name} do not exist, the first: {missing[0]}")
    return train_set, spread(dev_set, data.dev_utterances)


def spread(selection: Selection, count: int) -> Selection:
    """Keep at most ``count`` utterances, evenly spread."""
    total = len(selection.utterances)
    if total <= count:
        return selection
    kept = [i * total // count for i in range(count)]
    return Selection([selection.utterances[i] for i in kept], [selection.tokens[i] for i in kept], selection.left_out)


def _text(config: TrainingConfig, tokenizer: Tokenizer) -> TextBatches | None:
    if not config.text.files:
        return None
    unwanted = {normalize_for_training(utterance.text) for utterance in read_manifests(config.data.dev_manifests)}
    sentences = read_sentences(config.text.files, tokenizer, unwanted, config.data.text_form)
    log.info("text: %d sentences, %d tokens", len(sentences), sum(map(len, sentences)))
    return TextBatches(sentences, config.text.tokens, config.seed)


@torch.no_grad()
def set_global_statistics(model: SambaASR, selection: Selection, seed: int) -> None:
    """Estimate mean and deviation of each mel band over training utterances, and set them in the model."""
    order = np.random.default_rng(seed).permutation(len(selection.utterances))[:STATISTICS_UTTERANCES]
    dataset = SpeechDataset(selection, model.config.features.sample_rate)
    count = 0
    total = torch.zeros(model.config.features.n_mels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for index in order.tolist():
        waveform = dataset[0, index].waveform
        features, lengths = model.features(waveform[None], torch.tensor([len(waveform)]))
        frames = features[0, : int(lengths[0])].double()
        count += len(frames)
        total += frames.sum(0)
        squares += frames.square().sum(0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(1e-10).sqrt()
    model.features.set_statistics(mean.float(), deviation.float())


def train_loader(config: TrainingConfig, selection: Selection, start: int, pin_memory: bool) -> Any:
    """Return the endless loader of a run's batches, from batch number ``start`` on."""
    data = config.data
    durations = [utterance.duration for utterance in selection.utterances]
    sample_rate = config.model.features.sample_rate
    fits = AudioCache.gigabytes(durations, sample_rate) <= data.cache_gigabytes
    dataset = SpeechDataset(
        selection,
        sample_rate,
        speed_factors=data.speed_factors,
        augment=make_waveform_augment(config.waveform_augment, sample_rate),
        seed=config.seed,
        cache=AudioCache(durations, sample_rate) if fits else None,
    )
    batches = BatchSequence(durations, data.batch_seconds, config.seed, start_step=start, curriculum=data.curriculum)
    return make_loader(dataset, batches, data.num_workers, pin_memory)


def _dev_loader(config: TrainingConfig, selection: Selection) -> Any:
    dataset = SpeechDataset(selection, config.model.features.sample_rate)
    return make_loader(dataset, dev_batches(dataset.durations, config.data.batch_seconds), 0, False)


def make_trainer(config: TrainingConfig, **settings: Any) -> lightning.Trainer:
    """Return a Trainer on one device that prints and writes nothing by itself.

    Raises ValueError where the configured accelerator is not there.
    """
    try:
        return lightning.Trainer(
            accelerator=config.accelerator,
            devices=1,
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            **settings,
        )
    except MisconfigurationException as error:
        raise ValueError(
            f"accelerator ({config.accelerator}) cannot be used here; take auto or cpu ({error})"
        ) from error


def _run_trainer(config: TrainingConfig, out: Path, stop: GracefulStop) -> lightning.Trainer:
    return make_trainer(
        config,
        max_epochs=-1,
        max_steps=config.max_steps,
        val_check_interval=config.validate_every,
        check_val_every_n_epoch=None,
        callbacks=[
            stop,
            Metrics(out / "metrics.csv"),
            Checkpoints(out / "checkpoints", config.checkpoint_every, config.average_last),
        ],
    )


def _load_weights(module: TrainingModule, checkpoint: Path) -> int:
    """Load a checkpoint's weights, to see that they fit; return the batches drawn so far."""
    state = read_checkpoint(checkpoint)
    try:
        module.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"checkpoint {checkpoint} is of another model: {error}") from error
    return int(state["progress"]["position"])


def choose_weights(
    config: TrainingConfig, module: TrainingModule, dev_set: Selection, checkpoints: Sequence[Path]
) -> tuple[str, DevScores]:
    """Load the average of checkpoints into the module's model, or the last of them if its dev loss is lower.

    Returns what was chosen, in words, and its scores.
    """
    last = _model_state(checkpoints[-1])
    module.model.load_state_dict(last)
    last_scores = _validate(config, module, dev_set)
    if len(checkpoints) == 1:
        return f"step {saved_step(checkpoints[-1])}", last_scores
    # both names of tied embeddings, or the last ones' would come over their average
    names = [name for name, _ in module.model.named_parameters(remove_duplicate=False)]
    average = average_states((_model_state(path) for path in checkpoints), names)
    module.model.load_state_dict(average)
    scores = _validate(config, module, dev_set)
    steps = ", ".join(str(saved_step(path)) for path in checkpoints)
    if scores.loss <= last_scores.loss:
        return f"the average of steps {steps} (dev loss {scores.loss:.4f}, last step {last_scores.loss:.4f})", scores
    module.model.load_state_dict(last)
    what = f"step {saved_step(checkpoints[-1])} (dev loss {last_scores.loss:.4f}; the average of steps {steps} has "
    return what + f"{scores.loss:.4f})", last_scores


def _validate(config: TrainingConfig, module: TrainingModule, dev_set: Selection) -> DevScores:
    make_trainer(config).validate(module, _dev_loader(config, dev_set), verbose=False)
    assert module.dev_scores is not None
    return module.dev_scores


def _model_state(checkpoint: Path) -> dict[str, Tensor]:
    state = read_checkpoint(checkpoint)["state_dict"]
    return {name.removeprefix(_MODEL_PREFIX): value for name, value in state.items() if name.startswith(_MODEL_PREFIX)}
