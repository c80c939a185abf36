"""The teacher's kept states as a regulariser: what distil.py taught is not forgotten while words are learnt."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from samba_asr.training.data import read_manifests
from samba_asr.training.whisper.student import STRIDES, relative_error
from samba_asr.training.whisper.targets import (
    DONE_FILE,
    ENCODER_FILE,
    MEANS_FILE,
    STATES_FILE,
    TRAIN_FOLDER,
    WINDOWS_FILE,
    Windows,
)
from samba_asr.training.whisper.windows import WINDOW_STATES


class StateMatching(nn.Module):
    """The error of a distilled block's output, under the norm that distil.py left, to what the teacher says.

    Targets are stretched to an utterance's own length, so that changes of speed do not matter. Utterances that the run
    did not have, such as synthetic ones, count nothing.

    run: folder of distil.py; audio: path of each utterance of the training set. Raises FileNotFoundError or ValueError
    where the folder lacks something, or knows none of the utterances.
    """

    def __init__(self, run: str | Path, audio: Sequence[str]) -> None:
        super().__init__()
        self.run = Path(run)
        kept = self.run / TRAIN_FOLDER
        files = (STATES_FILE, DONE_FILE, MEANS_FILE, WINDOWS_FILE)
        for path in (self.run / "config.json", self.run / ENCODER_FILE, *(kept / file for file in files)):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} does not exist; is {self.run} a run of distil.py that reached stage (b)?"
                )
        config = json.loads((self.run / "config.json").read_text(encoding="utf-8"))
        self.stride = STRIDES[config["subsampling"]]
        self.means = torch.from_numpy(np.load(kept / MEANS_FILE))
        self.norm = self._norm()
        utterances = read_manifests(config["train"])
        windows = Windows(utterances, config["seed"])
        if (kept / WINDOWS_FILE).read_text() != windows.identity():
            raise ValueError(
                f"{', '.join(config['train'])}: these manifests changed after {self.run} was made; run distil.py again"
            )
        shape = (len(windows), WINDOW_STATES, self.means.shape[1])
        self._states = np.memmap(kept / STATES_FILE, np.float16, "r", shape=shape)
        done = np.fromfile(kept / DONE_FILE, np.uint8)
        heard = {
            utterances[place.utterance].audio: (number, place.start, place.end)
            for number, window in enumerate(windows.placements)
            for place in window
            if done[number]
        }
        self.places = [heard.get(path) for path in audio]
        if not any(self.places):
            raise ValueError(f"{self.run} has heard none of the training set's {len(audio)} utterances")

    def _norm(self) -> nn.LayerNorm:
        try:
            weights = load_file(self.run / ENCODER_FILE)
            norm = nn.LayerNorm(self.means.shape[1]).requires_grad_(False)
            norm.load_state_dict({name: weights[f"norm.{name}"].float() for name in ("weight", "bias")})
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self.run / ENCODER_FILE} is not what distil.py writes: {error}") from error
        return norm

    def targets(self, places: Sequence[int], lengths: Tensor) -> Tensor:
        """Return what the teacher says of utterances, (batch, states, d_model) float32, 0 after each one's end.

        places: in the training set, each one known to the run; lengths: (batch,) int64, states.
        """
        targets = torch.zeros(len(places), int(lengths.max()), self.means.shape[1])
        for row, place, length in zip(targets, places, lengths.tolist(), strict=True):
            known = self.places[place]
            assert known is not None
            window, start, end = known
            said = torch.from_numpy(self._states[window, start : end : self.stride].astype(np.float32))
            said = said - self.means[start : end : self.stride]
            row[:length] = F.interpolate(said.T[None], length, mode="linear", align_corners=True)[0].T
        return targets

    def forward(self, states: Tensor, lengths: Tensor, places: Sequence[int]) -> Tensor | None:
        """Return the error, a scalar as :func:`relative_error` has it; None where no utterance is known.

        states: (batch, states, d_model), the output of the last distilled block; lengths: (batch,) int64; places:
        (batch,), in the training set.
        """
        rows = [row for row, place in enumerate(places) if self.places[place] is not None and lengths[row] > 0]
        if not rows:
            return None
        lengths = lengths[rows].cpu()
        targets = self.targets([places[row] for row in rows], lengths).to(states.device)
        said: Tensor = self.norm(states[rows, : targets.shape[1]].float())
        return relative_error(said, targets, lengths)
