"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes ``path``'s place when the block ends without an error.

    Whatever happens, nothing else stays behind. One at a time in a folder and process.
    """
    path = Path(path)
    partial = path.with_name(f".samba-asr-{os.getpid()}.partial")  # short: path's own name may be as long as names get
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
