"""Manifests with a teacher's case and punctuation: it reads every utterance, and what it wrote is kept."""

import dataclasses
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from samba_asr.audio.load import AudioDecodeError, load_audio
from samba_asr.text.normalization import normalize_for_training, normalize_text
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.manifest import Utterance, read_manifest, write_manifest
from samba_asr.training.whisper.network import WINDOW_SECONDS, Teacher, build_teacher
from samba_asr.training.whisper.pseudo_labels import write_as
from samba_asr.training.whisper.settings import LabelConfig
from samba_asr.training.whisper.transcribe import padded_states, teacher_features, transcribe_states
from samba_asr.training.whisper.vocabulary import WhisperVocabulary
from samba_asr.training.whisper.weights import read_whisper_weights
from samba_asr.training.whisper.windows import SAMPLE_RATE

log = logging.getLogger(__name__)

REST_FOLDER, TEACHER_FOLDER = "rest", "teacher"
"""In the output folder: utterances that are not labelled, and what the teacher wrote."""
TOKENS_A_SECOND = 10
"""More than anyone says: what goes on longer is a loop."""


@dataclass
class Report:
    """What became of a manifest's utterances."""

    name: str
    labelled: int = 0
    """With the teacher's case and punctuation."""
    as_they_were: int = 0
    """Of corpora that have case and punctuation."""
    rest: int = 0
    """Transcript and teacher agree too little."""
    too_long: int = 0
    """Longer than the teacher hears."""
    unreadable: int = 0
    """Without audio that can be read."""
    agreed: int = 0
    """Words in which transcript and teacher agree, of all utterances that it read."""
    words: int = 0
    """Of the longer of the two."""

    def describe(self) -> str:
        """Return a line for the user."""
        parts = [f"{self.labelled} labelled"] if self.words or not self.as_they_were else []
        if self.as_they_were:
            parts.append(f"{self.as_they_were} have case and punctuation of their own")
        parts += [
            f"{count} {what}"
            for count, what in (
                (self.rest, "agree too little"),
                (self.too_long, f"longer than {WINDOW_SECONDS} s, left out"),
                (self.unreadable, "unreadable, left out"),
            )
            if count
        ]
        agreement = f"; {100 * self.agreed / self.words:.1f} % of {self.words} words agree" if self.words else ""
        return f"{self.name}: {', '.join(parts)}{agreement}"


def label_manifests(config: LabelConfig, out: str | Path) -> list[Report]:
    """Write ``out/<manifest's name>`` for each manifest, ``out/rest``, ``out/teacher`` and, with vocab_size,
    ``out/tokenizer.model``; go on where it was stopped.

    Raises ValueError or FileNotFoundError for settings or files that cannot be used; not for single recordings.
    """
    out, paths = Path(out), [Path(manifest) for manifest in config.manifests]
    names = [path.name for path in paths]
    for path in paths:
        if names.count(path.name) > 1:
            raise ValueError(f"{path.name} is there twice: label manifests of one name with an --out for each")
        if (out / path.name).exists() and (out / path.name).samefile(path):
            raise ValueError(f"--out {out} holds the manifest {path.name} itself: choose another folder")
    manifests = [[_absolute(utterance) for utterance in read_manifest(path)] for path in paths]
    reader = Reader(config, out / TEACHER_FOLDER)
    pairs = zip(names, manifests, strict=True)
    reports = [_label(name, utterances, reader, config, out) for name, utterances in pairs]
    if config.vocab_size is not None:
        texts = [utterance.text for name in names for utterance in read_manifest(out / name)]
        Tokenizer.train(texts, config.vocab_size).save(out / "tokenizer.model")
    return reports


def corpora_with_case(utterances: Sequence[Utterance]) -> set[str]:
    """Return the corpora at least half of whose transcripts have capitals and lower-case letters.

    By corpus, not by utterance: in one that has case, "and so on," is written as it should be.
    """
    cased = Counter(u.corpus for u in utterances if u.text != u.text.lower() and u.text != u.text.upper())
    total = Counter(utterance.corpus for utterance in utterances)
    return {corpus for corpus, count in total.items() if 2 * cased[corpus] >= count}


class Reader:
    """The teacher, and a file for each manifest with what it wrote so far."""

    def __init__(self, config: LabelConfig, folder: Path) -> None:
        weights = read_whisper_weights(config.teacher)
        self.config, self.folder = config, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher: Teacher = build_teacher(weights).to(self.device)
        self.features = teacher_features(self.teacher.encoder)
        self.vocabulary = WhisperVocabulary.load(config.teacher_tokenizer)
        self.identity = _identity(weights)

    def read(self, name: str, utterances: Sequence[Utterance], report: Report) -> dict[str, str]:
        """Return what the teacher writes, by audio; what is not there could not be read, and is counted."""
        path = self.folder / name
        texts = self._kept(path)
        missing = [utterance for utterance in utterances if utterance.audio not in texts]
        missing.sort(key=lambda utterance: -utterance.duration)  # texts of a batch end at about the same time
        path.parent.mkdir(parents=True, exist_ok=True)
        total, done = len(utterances), len(utterances) - len(missing)
        bar = tqdm(desc=name, unit="utterance", total=total, initial=done, mininterval=5)
        with path.open("a", encoding="utf-8") as file, bar:
            for start in range(0, len(missing), self.config.batch):
                batch = missing[start : start + self.config.batch]
                for audio, text in self._read_batch(batch, report):
                    texts[audio] = text
                    line = {"audio": audio, "text": text, "teacher": self.identity}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                bar.update(len(batch))
        return texts

    def _kept(self, path: Path) -> dict[str, str]:
        """Return what this very teacher wrote, and drop a last line that is cut."""
        if not path.exists():
            return {}
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        try:
            lines = [json.loads(line) for line in whole.decode().split("\n") if line]
            return {line["audio"]: line["text"] for line in lines if line["teacher"] == self.identity}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and the teacher reads anew") from error

    def _read_batch(self, batch: Sequence[Utterance], report: Report) -> Iterator[tuple[str, str]]:
        heard: list[tuple[str, Tensor]] = []
        for utterance in batch:
            try:
                waveform = torch.from_numpy(load_audio(utterance.audio, SAMPLE_RATE))
            except (AudioDecodeError, OSError) as error:
                report.unreadable += 1
                log.warning("%s", error)
                continue
            if len(waveform) > WINDOW_SECONDS * SAMPLE_RATE:
                report.too_long += 1
            else:
                heard.append((utterance.audio, waveform))
        if not heard:
            return
        waveforms = [waveform for _, waveform in heard]
        states = padded_states(self.teacher, self.features, waveforms, self.config.bf16)
        room = len(self.teacher.decoder.positional_embedding) - len(self.vocabulary.prompt)
        seconds = max(map(len, waveforms)) / SAMPLE_RATE
        most = min(room, int(TOKENS_A_SECOND * (1 + seconds)))
        texts = transcribe_states(self.teacher, self.vocabulary, states, most)
        yield from zip([audio for audio, _ in heard], texts, strict=True)


def _label(name: str, utterances: Sequence[Utterance], reader: Reader, config: LabelConfig, out: Path) -> Report:
    report = Report(name)
    cased = corpora_with_case(utterances)
    bare = [utterance for utterance in utterances if utterance.corpus not in cased]
    fitting = [utterance for utterance in bare if utterance.duration <= WINDOW_SECONDS]
    count = min(len(fitting), config.limit or len(fitting))
    chosen = [fitting[i * len(fitting) // count] for i in range(count)]
    report.too_long = len(bare) - len(fitting)
    texts = reader.read(name, chosen, report) if chosen else {}
    wanted = {utterance.audio for utterance in chosen}
    labelled: list[Utterance] = []
    rest: list[Utterance] = []
    for utterance in utterances:
        if utterance.corpus in cased:
            report.as_they_were += 1
            labelled.append(dataclasses.replace(utterance, text=normalize_text(utterance.text, "written")))
        elif utterance.audio in wanted and utterance.audio in texts:
            label = write_as(utterance.text, texts[utterance.audio])
            report.agreed += label.agreed
            report.words += label.words
            if label.agreement >= config.min_agreement:
                report.labelled += 1
                labelled.append(dataclasses.replace(utterance, text=label.text))
            else:
                report.rest += 1
                rest.append(dataclasses.replace(utterance, text=normalize_for_training(utterance.text)))
    write_manifest(out / name, labelled)
    if config.rest == "keep" and rest:
        write_manifest(out / REST_FOLDER / name, rest)
    else:
        (out / REST_FOLDER / name).unlink(missing_ok=True)
    return report


def _absolute(utterance: Utterance) -> Utterance:
    return dataclasses.replace(utterance, audio=os.path.abspath(utterance.audio))


def _identity(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]
