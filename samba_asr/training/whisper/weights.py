"""Read a Whisper checkpoint, whoever wrote it, into one set of names: those of openai's package.

Understood: openai's ``.pt``, Hugging Face's ``.safetensors``, and ``.npz`` files with CTranslate2's names (slashes as
dots, projections of an attention stacked; not quantised). Nothing in a file is run.
"""

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_HUGGING_FACE = (
    (r"^model\.", ""),
    (r"\bembed_tokens\.weight$", "token_embedding.weight"),
    (r"\bembed_positions\.weight$", "positional_embedding"),
    (r"\.layers\.", ".blocks."),
    (r"\.self_attn\.", ".attn."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
)
_CTRANSLATE2 = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.layer_(\d+)\.", r".blocks.\1."),
    (r"\.self_attention\.layer_norm\.", ".attn_ln."),
    (r"\.attention\.layer_norm\.", ".cross_attn_ln."),
    (r"\.ffn\.layer_norm\.", ".mlp_ln."),
    (r"\.ffn\.linear_0\.", ".mlp.0."),
    (r"\.ffn\.linear_1\.", ".mlp.2."),
    (r"\.self_attention\.", ".attn."),
    (r"\.attention\.", ".cross_attn."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
    (r"\.embeddings\.weight$", ".token_embedding.weight"),
    (r"\.position_encodings\.encodings$", ".positional_embedding"),
)
_STACKED = {
    ("attn", 0): ("query", "key", "value"),
    ("attn", 1): ("out",),
    ("cross_attn", 0): ("query",),
    ("cross_attn", 1): ("key", "value"),
    ("cross_attn", 2): ("out",),
}
"""CTranslate2's linear layers of an attention, and the projections stacked in each."""

_OURS = re.compile(
    r"(encoder|decoder)\.(conv[12]\.(weight|bias)|positional_embedding|token_embedding\.weight|ln(_post)?\.(weight|bias)"
    r"|blocks\.\d+\.((cross_)?attn(_ln)?|mlp|mlp_ln)\..+)"
)


def read_whisper_weights(path: str | Path) -> dict[str, Tensor]:
    """Return a checkpoint's weights as float32 tensors under openai's names.

    Raises FileNotFoundError, or ValueError where the file is damaged, quantised or holds no Whisper model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"teacher {path} does not exist; name a Whisper checkpoint: .pt (openai), .safetensors (Hugging Face) or "
            ".npz (CTranslate2's names)"
        )
    readers = {".pt": _read_openai, ".safetensors": _read_hugging_face, ".npz": _read_ctranslate2}
    if path.suffix not in readers:
        raise ValueError(f"teacher {path} must end in {', '.join(readers)}")
    weights = {name: value for name, value in readers[path.suffix](path).items() if _OURS.fullmatch(name)}
    missing = [name for name in ("encoder.conv1.weight", "encoder.ln_post.weight") if name not in weights]
    if missing:
        raise ValueError(f"teacher {path} holds no Whisper model: {', '.join(missing)} not found")
    quantised = [name for name, value in weights.items() if not value.is_floating_point()]
    if quantised:
        raise ValueError(
            f"teacher {path} is quantised ({quantised[0]}: {weights[quantised[0]].dtype}); take it in float"
        )
    return {name: value.float().contiguous() for name, value in weights.items()}


def _read_openai(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weights: dict[str, Tensor] = {name: torch.as_tensor(value) for name, value in state["model_state_dict"].items()}
    except OSError:
        raise
    except Exception as error:  # torch.load promises no type for damaged files
        raise ValueError(f"teacher {path} is damaged, or not a checkpoint of openai's whisper package") from error
    return weights


def _read_hugging_face(path: Path) -> dict[str, Tensor]:
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"teacher {path} is damaged: {error}") from error
    return {_renamed(name, _HUGGING_FACE): value for name, value in weights.items()}


def _read_ctranslate2(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind in "fi"}
    except (EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"teacher {path} is damaged, or no .npz file") from error
    return _unstacked({_renamed(name, _CTRANSLATE2): value for name, value in arrays.items()})


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _unstacked(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, value in weights.items():
        found = re.fullmatch(r"(.+\.)(attn|cross_attn)\.linear_(\d)\.(weight|bias)", name)
        if found is None or (found[2], int(found[3])) not in _STACKED:
            result[name] = value
            continue
        block, attention, index, kind = found.groups()
        projections = _STACKED[attention, int(index)]
        for projection, part in zip(projections, value.chunk(len(projections)), strict=True):
            if (projection, kind) != ("key", "bias"):  # Whisper has none: CTranslate2 stores zeros
                result[f"{block}{attention}.{projection}.{kind}"] = part
    return result
