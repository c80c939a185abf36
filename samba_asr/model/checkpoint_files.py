"""What all checkpoint folders have in common, a recogniser's and a language model's: config.json, model.safetensors,
tokenizer.model and README.md, the model card, each written in one piece and checked when read."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from samba_asr.atomic import replacing
from samba_asr.config import CONFIG_VERSION
from samba_asr.ssm.mixer import RATES
from samba_asr.text.tokenizer import Tokenizer

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, CARD_FILE = (
    "config.json",
    "model.safetensors",
    "tokenizer.model",
    "README.md",
)
LEXICON_FILE = "lexicon.txt"
"""A recogniser's folder may have one: the words that joint search prefers."""


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be used; the message says which file is wrong, and how."""


@dataclass(frozen=True)
class Kind:
    """What a folder holds."""

    name: str
    """For messages."""
    format: str
    """The word for it in config.json."""
    version: int
    """The newest of config.json that this program reads; it reads all before."""


RECOGNISER = Kind("recogniser", "samba-asr", CONFIG_VERSION)
LANGUAGE_MODEL = Kind("language model", "samba-asr-lm", 1)


def write_checkpoint(
    folder: Path,
    kind: Kind,
    config: Mapping[str, Any],
    model: nn.Module,
    tied: Mapping[str, str],
    tokenizer: Tokenizer,
    card: str,
    dtype: torch.dtype | None,
) -> None:
    """Write all four files; tied: as in :func:`load_weights`; dtype: as in :func:`as_stored`.

    Raises ValueError where the tokenizer does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.vocab_size != config["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model's vocab_size is {config['vocab_size']}"
        )
    tensors = {name: as_stored(name, tensor, dtype) for name, tensor in model.state_dict().items() if name not in tied}
    with replacing(folder / WEIGHTS_FILE) as path:
        path.write_bytes(save(tensors))  # save_file's is private to its owner
    tokenizer.save(folder / TOKENIZER_FILE)
    with replacing(folder / CARD_FILE) as path:
        path.write_text(card, encoding="utf-8")
    write_config(folder, kind, config)


def write_config(folder: Path, kind: Kind, config: Mapping[str, Any]) -> None:
    """Write ``config.json``, the whole file or nothing."""
    content = {"format": kind.format, "version": kind.version, "model": config}
    with replacing(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_lexicon(source: str | Path, folder: str | Path) -> None:
    """Give a checkpoint's folder the lexicon of the one that it came from, if that has one."""
    lexicon = Path(source) / LEXICON_FILE
    if lexicon.is_file():
        with replacing(Path(folder) / LEXICON_FILE) as path:
            shutil.copyfile(lexicon, path)


def as_stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a model's tensor as checkpoints have it: matrices in dtype, if one is given.

    Features, decay rates and vectors always keep their type: they are few, and precision matters there.
    """
    exact = (
        dtype is None
        or not tensor.is_floating_point()
        or tensor.dim() < 2
        or name.startswith("features.")
        or name.endswith(RATES)
    )
    return tensor.detach().cpu().contiguous() if exact else tensor.detach().cpu().to(dtype).contiguous()


def check_files(folder: Path) -> None:
    """Raise FileNotFoundError where there is no such folder, CheckpointError where it lacks a file."""
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {folder} does not exist")
    for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"model folder {folder} lacks {name}; it is incomplete or no Samba-ASR checkpoint")


def read_config(path: Path, kind: Kind) -> tuple[Any, int]:
    """Return what a ``config.json`` says of its model, unchecked, and the file's version.

    Raises CheckpointError for a file of another kind or version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    for other in (RECOGNISER, LANGUAGE_MODEL):
        if found == other.format != kind.format:
            raise CheckpointError(f"{path.parent} holds a {other.name}; give the folder of a {kind.name} here")
    if found != kind.format:
        raise CheckpointError(f'{path} is no Samba-ASR configuration: it lacks "format": "{kind.format}"')
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= kind.version:
        raise CheckpointError(
            f"{path} has version {version}, this program reads versions 1 to {kind.version}; "
            "use the version that wrote it"
        )
    return content.get("model") or {}, version


def read_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """Read ``tokenizer.model``. Raises CheckpointError where it is damaged or has not vocab_size pieces."""
    try:
        tokenizer = Tokenizer.load(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(f"{path} has {tokenizer.vocab_size} pieces, but {CONFIG_FILE} says {vocab_size}")
    return tokenizer


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors``. Raises CheckpointError where it is damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or not in safetensors format: {error}") from error
    return tensors


def load_weights(path: Path, model: nn.Module, tensors: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Load what was read from ``path`` into a model.

    tied: the tensors that are others under a second name, which a file holds once; name to the other's name.
    Raises CheckpointError where names, shapes or values are wrong.
    """
    tensors = {**tensors, **{name: tensors[source] for name, source in tied.items() if source in tensors}}
    _check_tensors(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)


def _check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        parts = [f"{what} {', '.join(names[:3])}" for what, names in (("lacks", missing), ("has", unknown)) if names]
        raise CheckpointError(f"{path} does not fit {CONFIG_FILE}: it {' and '.join(parts)}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, but {CONFIG_FILE} asks for {tuple(tensor.shape)}"
            raise CheckpointError(f"{path}: {name} has shape {shapes}")
        if not bool(torch.isfinite(found[name]).all()):
            raise CheckpointError(f"{path}: {name} holds values that are not finite; its training went wrong")
