"""The teacher's states as a regulariser: what distil.py taught is not forgotten while words are learnt.

Two ways to have them: kept by distil.py (:class:`StateMatching`), of recordings as they are, or computed at each step
(:class:`LiveMatching`), of whatever the student hears, which a GPU does in passing; its decoder may read along
(:mod:`samba_asr.training.whisper.reading`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from samba_asr.ssm.padding import mask_padding, valid_mask
from samba_asr.training.data import Batch, read_manifests
from samba_asr.training.whisper.network import WINDOW_SECONDS, TeacherEncoder
from samba_asr.training.whisper.reading import Expectation, Reader
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
from samba_asr.training.whisper.transcribe import teacher_features
from samba_asr.training.whisper.windows import STATE_SAMPLES, WINDOW_STATES, pack_in_order


class Distances(NamedTuple):
    """How far a student is from its teacher, scalars."""

    states: Tensor
    """Error of the states, as :func:`relative_error` has it."""
    reading: Tensor | None
    """Divergence of what the teacher's decoder expects, nats a token (:class:`Reader`); None where none reads."""
    expectation: Expectation | None
    """What that decoder expects of the teacher's states, by row of the batch; None where that is not asked for."""


class Taught(NamedTuple):
    """What the teacher's encoder says, both (batch, states, d_model) float32."""

    states: Tensor
    """Without the mean of each place in its window; 0 after each one's end."""
    means: Tensor | None
    """That mean, None where it is not known."""


class Matching(nn.Module):
    """The error of a distilled block's output, under the norm that distil.py left, to what the teacher says.

    run: folder of distil.py, of which files lie in it. Raises FileNotFoundError or ValueError where it lacks something.
    """

    def __init__(self, run: str | Path, files: Sequence[Path]) -> None:
        super().__init__()
        self.run = Path(run)
        for path in (self.run / "config.json", self.run / ENCODER_FILE, *files):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} does not exist; is {self.run} a run of distil.py that reached stage (b)?"
                )
        self.config: dict[str, Any] = json.loads((self.run / "config.json").read_text(encoding="utf-8"))
        self.stride = STRIDES[self.config["subsampling"]]
        self.means: Tensor
        self.register_buffer("means", torch.from_numpy(np.load(self.run / TRAIN_FOLDER / MEANS_FILE)), persistent=False)
        self.norm = self._norm()
        self.reader: Reader | None = None
        self.interprets = False
        """Whether the reader shall say what it expects in the student's tokens."""

    def _norm(self) -> nn.LayerNorm:
        try:
            weights = load_file(self.run / ENCODER_FILE)
            norm = nn.LayerNorm(self.means.shape[1]).requires_grad_(False)
            norm.load_state_dict({name: weights[f"norm.{name}"].float() for name in ("weight", "bias")})
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self.run / ENCODER_FILE} is not what distil.py writes: {error}") from error
        return norm

    def known(self, batch: Batch, lengths: Tensor) -> Sequence[int]:
        """Return the utterances of a batch, by row, whose states the teacher tells; lengths: (batch,), states."""
        raise NotImplementedError

    def targets(self, batch: Batch, rows: Sequence[int], lengths: Tensor) -> Taught:
        """Return what the teacher says of some rows of a batch; lengths: (rows,) int64, states."""
        raise NotImplementedError

    def forward(self, states: Tensor, lengths: Tensor, batch: Batch) -> Distances | None:
        """Return how far states are from the teacher's; None where no utterance is known.

        states: (views * batch, states, d_model), the output of the last distilled block, one view of all the batch's
        utterances after the other; lengths: (views * batch,) int64, the same in each view.
        """
        count = len(batch.places)
        views, lengths = len(states) // count, lengths[:count]
        rows = list(self.known(batch, lengths))
        if not rows:
            return None
        lengths = lengths[rows]
        with torch.no_grad():
            taught = self.targets(batch, rows, lengths)
        targets = taught.states.repeat(views, 1, 1)
        said: Tensor = self.norm(states.unflatten(0, (views, count))[:, rows, : targets.shape[1]].flatten(0, 1).float())
        reading, expectation = None, None
        if self.reader is not None and taught.means is not None:
            tokens, counts = batch.tokens.tolist(), batch.token_lengths.tolist()  # a row at a time a GPU waits for each
            texts = [self.reader.read(tokens[row][: counts[row]]) for row in rows]
            placed = said + taught.means.repeat(views, 1, 1)
            read = self.reader(placed, taught.states + taught.means, lengths, texts)
            if read is not None:
                reading = read.divergence
                if self.interprets:
                    expectation = self.reader.expectation(read, texts, [tokens[row][: counts[row]] for row in rows])
        if expectation is not None:
            expectation = expectation._replace(rows=torch.tensor(rows, device=lengths.device)[expectation.rows])
        return Distances(relative_error(said, targets, lengths.repeat(views)), reading, expectation)


class StateMatching(Matching):
    """Targets that distil.py kept, stretched to an utterance's own length, so that changes of speed do not matter.

    Utterances that the run did not have, such as synthetic ones, count nothing, nor do those given up for noise.

    run: folder of distil.py; audio: path of each utterance of the training set. Raises FileNotFoundError or ValueError
    where the folder lacks something, or knows none of the utterances.
    """

    def __init__(self, run: str | Path, audio: Sequence[str]) -> None:
        kept = Path(run) / TRAIN_FOLDER
        super().__init__(run, [kept / file for file in (STATES_FILE, DONE_FILE, MEANS_FILE, WINDOWS_FILE)])
        utterances = read_manifests(self.config["train"])
        windows = Windows(utterances, self.config["seed"])
        if (kept / WINDOWS_FILE).read_text() != windows.identity():
            raise ValueError(
                f"{', '.join(self.config['train'])}: these manifests changed after {self.run} was made; run distil.py "
                "again"
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

    def known(self, batch: Batch, lengths: Tensor) -> Sequence[int]:
        """As :meth:`Matching.known`."""
        each = zip(batch.places.tolist(), batch.token_lengths.tolist(), lengths.tolist(), strict=True)
        return [row for row, (place, tokens, states) in enumerate(each) if self.places[place] and tokens and states]

    def targets(self, batch: Batch, rows: Sequence[int], lengths: Tensor) -> Taught:
        """As :meth:`Matching.targets`."""
        targets = torch.zeros(len(rows), int(lengths.max()), self.means.shape[1])
        means = self.means.cpu()
        for row, place, length in zip(targets, batch.places[rows].tolist(), lengths.tolist(), strict=True):
            known = self.places[place]
            assert known is not None
            window, start, end = known
            said = torch.from_numpy(self._states[window, start : end : self.stride].astype(np.float32))
            said = said - means[start : end : self.stride]
            row[:length] = F.interpolate(said.T[None], length, mode="linear", align_corners=True)[0].T
        return Taught(targets.to(lengths.device), None)


class LiveMatching(Matching):
    """Targets from a teacher that listens along: to speech at any speed, in noise and rooms, synthetic too.

    Utterances share its windows of 30 s, as in distil.py. Precision is autocast's.

    run: folder of distil.py, whose norm, means and rate of states hold; teacher: its teacher's encoder; longest:
    seconds of the longest recording that may come; reader: the teacher's decoder, if it shall read along. Raises
    FileNotFoundError where the folder lacks something, and ValueError for a teacher of another width or recordings of
    more than 30 s.
    """

    def __init__(self, run: str | Path, teacher: TeacherEncoder, longest: float, reader: Reader | None = None) -> None:
        super().__init__(run, [Path(run) / TRAIN_FOLDER / MEANS_FILE])
        width = teacher.ln_post.normalized_shape[0]
        if width != self.means.shape[1]:
            raise ValueError(f"encoder.teacher has {width} channels, that of {self.run} {self.means.shape[1]}")
        if longest > WINDOW_SECONDS:
            raise ValueError(
                f"encoder.teacher hears {WINDOW_SECONDS} s at once, and recordings may last {longest:.1f} s, slowed "
                "down: lower data.max_duration"
            )
        self.teacher = teacher.requires_grad_(False)
        self.features = teacher_features(teacher)
        self.reader = reader

    def known(self, batch: Batch, lengths: Tensor) -> Sequence[int]:
        """As :meth:`Matching.known`."""
        return [row for row, states in enumerate(lengths.tolist()) if states]

    def targets(self, batch: Batch, rows: Sequence[int], lengths: Tensor) -> Taught:
        """As :meth:`Matching.targets`."""
        waveforms, samples = batch.waveforms[rows], batch.waveform_lengths[rows]
        places = pack_in_order([-(-count // STATE_SAMPLES) for count in samples.tolist()])
        windows, starts = torch.tensor(places, device=samples.device).unbind(1)
        states = self._states(waveforms, samples, WINDOW_STATES * windows + starts, int(windows[-1]) + 1)
        steps = self.stride * torch.arange(int(lengths.max()), device=samples.device)
        within = (starts[:, None] + steps).clamp_max(WINDOW_STATES - 1)
        means = self.means[within]
        return Taught(mask_padding(states[windows[:, None], within] - means, lengths), means)

    def _states(self, waveforms: Tensor, samples: Tensor, starts: Tensor, count: int) -> Tensor:
        """starts: (batch,), in states from the first window's begin. Returns (windows, 1500, d_model) float32."""
        size = WINDOW_STATES * STATE_SAMPLES
        heard = waveforms.new_zeros(count * size + 1)  # padding goes to the last one
        steps = torch.arange(waveforms.shape[1], device=waveforms.device)
        own = valid_mask(samples, waveforms.shape[1])
        index = torch.where(own, STATE_SAMPLES * starts[:, None] + steps, count * size)
        heard.scatter_(0, index.flatten(), waveforms.flatten())
        windows = heard[:-1].view(count, size)
        features, _ = self.features(windows, torch.full((count,), size, device=samples.device))
        states: Tensor = self.teacher(features)[0]
        return states.float()
