"""torchaudio.transforms, also where torchaudio's native library does not load."""

import functools
import importlib
import sys
import warnings
from types import ModuleType


@functools.cache
def torchaudio_transforms() -> ModuleType | None:
    """Return torchaudio.transforms, or None where torchaudio is not installed or does not fit the installed torch.

    torchaudio's wheel is built against CUDA: beside a CPU-only torch its native library does not load, and the import
    raises OSError. Its transforms do not need that library, so a stand-in takes the place of the module that loads it.
    """
    try:
        importlib.import_module("torchaudio")
        return importlib.import_module("torchaudio.transforms")
    except (OSError, ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torchaudio":
            return None
        _forget_torchaudio()
    sys.modules["torchaudio._extension"] = _extension_without_library()
    try:
        return importlib.import_module("torchaudio.transforms")
    except Exception as error:  # whatever an unsuited release stumbles over
        _forget_torchaudio()
        warnings.warn(f"torchaudio cannot be imported ({error}); going on without it", stacklevel=2)
        return None


def _forget_torchaudio() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]


def _extension_without_library() -> ModuleType:
    """What torchaudio/_extension/__init__.py defines when its wheel has no native library."""

    def check_cuda_version() -> None:
        return None

    def fail_if_no_align(function: object) -> object:
        return function

    module = ModuleType("torchaudio._extension")
    vars(module).update(
        __path__=[],
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=check_cuda_version,
        fail_if_no_align=fail_if_no_align,
    )
    return module
