"""Which checkpoint folder a model's name stands for."""

import json
import os
from pathlib import Path

import samba_asr

MODEL_VARIABLE = "SAMBA_ASR_MODEL"
"""Environment variable that names the model when the caller does not."""

PRETRAINED = Path(samba_asr.__file__).resolve().parents[1] / "pretrained"
"""The checkout's models: ``index.json`` and one folder for each."""


_WAYS = (
    f"give one (--model FOLDER, or Transcriber.load(FOLDER)), or set the environment variable {MODEL_VARIABLE}, or run "
    "in a checkout of samba-asr with the model that its pretrained/index.json names as default"
)


def pretrained_models(folder: Path = PRETRAINED) -> tuple[str | None, dict[str, str]]:
    """Read an index: its default's name, and each name's description.

    Returns (None, {}) where there is no index, as in an installation outside a checkout.
    Raises ValueError for an index that is not {"default": NAME, "models": {NAME: {"description": ...}}}.
    """
    index = folder / "index.json"
    if not index.is_file():
        return None, {}
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        models = {name: str(about["description"]) for name, about in content["models"].items()}
        default = content["default"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of models: {error!r}") from error
    if default not in models:
        raise ValueError(f"{index}: the default ({default!r}) is not among its models ({', '.join(models)})")
    return default, models


def resolve_model(model: str | Path | None = None, pretrained: Path = PRETRAINED) -> Path:
    """Return the checkpoint folder of a model: a folder's path, or a name in ``pretrained/index.json``.

    Without ``model``: what the environment variable SAMBA_ASR_MODEL says, then the index's default.
    Raises FileNotFoundError that says what exists.
    """
    if model is not None:
        return _named(model, "model", pretrained)
    variable = os.environ.get(MODEL_VARIABLE)
    if variable:
        return _named(variable, MODEL_VARIABLE, pretrained)
    default, _ = pretrained_models(pretrained)
    if default is None:
        raise FileNotFoundError(f"no model: {_WAYS} ({pretrained} has none)")
    if not (pretrained / default).is_dir():
        raise FileNotFoundError(
            f"the default of {pretrained / 'index.json'} is {default!r}, but {pretrained / default} is missing: {_WAYS}"
        )
    return _named(default, f"the default of {pretrained / 'index.json'}", pretrained)


def _named(model: str | Path, origin: str, pretrained: Path) -> Path:
    folder = Path(model).expanduser()
    if str(model) and folder.is_dir():
        return folder
    if folder.is_file():
        raise FileNotFoundError(f"{origin} ({str(model)!r}) is a file; a model is the folder that holds config.json")
    _, models = pretrained_models(pretrained)
    if str(model) not in models:
        known = f"the known names are {', '.join(sorted(models))}" if models else "this installation ships no models"
        raise FileNotFoundError(f"{origin} ({str(model)!r}) is neither a folder nor a known name; {known}")
    folder = pretrained / str(model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{origin} ({str(model)!r}) is listed in {pretrained / 'index.json'}, but {folder} is missing"
        )
    return folder
