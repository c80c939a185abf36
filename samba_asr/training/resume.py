"""Checkpoints of a run: reading them, and whether a run may continue from one."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from samba_asr.config import ModelConfig
from samba_asr.text.normalization import TextForm
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.config import DataConfig, EncoderTuningConfig, TrainingConfig

_NEEDED = {"state_dict", "optimizer_states", "progress", "hyper_parameters"}
_FREE = ("dropout", "drop_path", "chunk_size", "search", "words", "d_state", "dt_rank")
"""Not compared: what leaves the meaning of the weights alone, and sizes that loading the weights compares."""


def check_folder(out: Path, resume: bool) -> None:
    """Raise ValueError where a run's folder is a file, or holds something that a new run would mix with."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out must name a folder")
    if not resume and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: continue its run with --resume true, or choose another --out")


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's model, in hexadecimal."""
    return hashlib.sha256(tokenizer.model_proto).hexdigest()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a ``.ckpt`` onto the CPU, tensors and plain values alone: nothing in it is run.

    Raises ValueError where it is damaged or none of train.py's, OSError where it cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        whole = isinstance(state, dict) and state.keys() >= _NEEDED
    except OSError:
        raise
    except Exception as error:  # torch.load promises no type for damaged files
        raise ValueError(_damaged(path)) from error
    if not whole:
        raise ValueError(_damaged(path))
    assert isinstance(state, dict)
    return state


def _damaged(path: Path) -> str:
    return f"checkpoint {path} is damaged, or not one of train.py: delete it and resume from the one before"


def check_same_run(path: Path, config: TrainingConfig, tokenizer: Tokenizer) -> None:
    """Raise ValueError where a checkpoint's tokenizer, form of text or model differs from what is configured."""
    saved = read_checkpoint(path)["hyper_parameters"]
    ours = tokenizer_hash(tokenizer)
    if saved["tokenizer_sha256"] != ours:
        raise ValueError(
            f"data.tokenizer ({config.data.tokenizer}) is another tokenizer than that of {path}: "
            "resume with the run's own, or choose another --out"
        )
    check_text_form(path, saved["training"], config.data.text_form)
    before = ModelConfig.from_dict(saved["training"]["model"]).to_dict()  # fields of later versions: their defaults
    changes = list(differences("model", before, config.model.to_dict()))
    if changes:
        raise ValueError(
            f"the configured model is another one than that of {path}: {'; '.join(changes)}; "
            "resume with the run's own settings (its config.yaml), or choose another --out"
        )
    _check_optimiser_groups(path, saved["training"]["encoder"], config.encoder)


def _check_optimiser_groups(path: Path, saved: Mapping[str, Any], encoder: EncoderTuningConfig) -> None:
    """Raise ValueError where the optimiser of a checkpoint has its parameters in other groups."""
    new_blocks = saved.get("new_blocks", EncoderTuningConfig.new_blocks)
    if new_blocks != encoder.new_blocks:
        raise ValueError(
            f"encoder.new_blocks ({encoder.new_blocks}) was {new_blocks} in {path}: resume with that, "
            "or choose another --out"
        )
    copied_share = saved.get("copied_share", EncoderTuningConfig.copied_share)
    if (copied_share < 1) != (encoder.copied_share < 1):
        raise ValueError(
            f"encoder.copied_share ({encoder.copied_share}) was {copied_share} in {path}: a run that begins with 1 "
            "stays there, one that begins below stays below; resume with such a share, or choose another --out"
        )


def check_text_form(path: Path, saved: Mapping[str, Any], form: TextForm) -> None:
    """Raise ValueError where the settings in a checkpoint, as plain dicts, have another form of text."""
    before = saved["data"].get("text_form", DataConfig.text_form)
    if before != form:
        raise ValueError(f"data.text_form ({form}) was {before} in {path}: resume with that, or choose another --out")


def differences(name: str, saved: Any, ours: Any) -> Iterator[str]:
    """Say, setting by setting, where two configs as plain dicts differ in what the weights mean."""
    if isinstance(saved, Mapping) and isinstance(ours, Mapping):
        for key in (*ours, *(key for key in saved if key not in ours)):
            if key not in _FREE:
                yield from differences(f"{name}.{key}", saved.get(key), ours.get(key))
    elif saved != ours:
        yield f"{name} was {saved} and is now {ours}"
