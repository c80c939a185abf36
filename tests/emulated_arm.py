"""The native kernels on an emulated ARM processor, for the wrappers in samba_asr.ssm to call as if they were here."""

import ctypes
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from samba_asr.ssm.native import compile_kernels

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
DRIVER = Path(__file__).with_name("arm_driver.cpp")
BASE = 0x10_0000_0000
"""Where the emulated program has the memory that it shares with us: far from all that it has of its own."""
ALIGNMENT = 64


class EmulatedKernels:
    """Stands in for what load_kernels() returns. Each call is a process: what the arguments point to goes there and
    back in a file. Structures are the same there as here, since both have 64-bit addresses and align alike."""

    def __init__(self, folder: Path) -> None:
        library, driver = folder / "kernels.so", folder / "driver"
        compile_kernels(COMPILER, library)
        subprocess.run([COMPILER, "-std=c++17", str(DRIVER), "-ldl", "-o", str(driver)], check=True)
        libc = subprocess.run([COMPILER, "-print-file-name=libc.so.6"], capture_output=True, text=True, check=True)
        root = Path(libc.stdout.strip()).resolve().parent.parent
        self._command = [EMULATOR, "-L", str(root), str(driver), str(library)]
        self._file = folder / "memory"
        self._forget()
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("samba_"):
            raise AttributeError(name)
        return partial(self._call, name)

    def pointer(self, tensor: Tensor | None) -> int | None:
        """Return where a tensor will lie in the next call's memory."""
        if tensor is None:
            return None
        storage = tensor.untyped_storage()  # whose rest a view's rows may be spread over
        return self._place(tensor.data_ptr(), storage.data_ptr() + storage.nbytes() - tensor.data_ptr(), tensor)

    def _forget(self) -> None:
        self._places: dict[int, tuple[int, int, object]] = {}  # by address here: address there, size, owner
        self._end = BASE + ALIGNMENT

    def _place(self, address: int, size: int, owner: object) -> int:
        if address not in self._places:
            self._places[address] = self._end, size, owner
            self._end += -(-size // ALIGNMENT) * ALIGNMENT
        return self._places[address][0]

    def _word(self, argument: Any) -> int:
        structure = getattr(argument, "_obj", None)  # of ctypes.byref
        if structure is None:
            return int(getattr(argument, "value", argument))
        return self._place(ctypes.addressof(structure), ctypes.sizeof(structure), structure)

    def _call(self, name: str, *arguments: Any) -> int:
        words = [str(self._word(argument)) for argument in arguments]
        memory = bytearray(self._end - BASE)
        for address, (there, size, _) in self._places.items():
            memory[there - BASE : there - BASE + size] = ctypes.string_at(address, size)
        self._file.write_bytes(memory)
        command = [*self._command, name, str(self._file), hex(BASE), *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=100)
        after = self._file.read_bytes()
        for address, (there, size, _) in self._places.items():
            ctypes.memmove(address, after[there - BASE : there - BASE + size], size)
        self._forget()
        self.called.append(name)
        return int(done.stdout)
