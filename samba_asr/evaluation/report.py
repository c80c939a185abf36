"""The report of an evaluation: report.md, utterances.jsonl and pictures in one folder."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import torch

from samba_asr.audio.features import LogMel
from samba_asr.audio.load import load_audio
from samba_asr.evaluation.confidence import expected_calibration_error, judge, reliability
from samba_asr.evaluation.environment import available_cores, git_commit, package_versions, processor_name
from samba_asr.evaluation.wer import (
    WER,
    ScoredUtterance,
    alignment_text,
    character_error_rate,
    confidence_interval,
    score_by_duration,
    score_each,
    scoring_pair,
    worst,
)

PACKAGES = ("samba-asr", "torch", "numpy", "soundfile", "soxr", "sentencepiece", "jiwer", "whisper-normalizer")

UTTERANCES = "utterances.jsonl"
"""Of a report's folder: a line for each utterance, with its texts and errors."""
_ASKED_FOR = ("times", "n_best")
"""Fields of an utterance that stand in that file only where they hold something."""
EXPLANATION = """\
WER is the number of wrong words (S substituted, D left out, I inserted) over the number of words said, both summed over
the set, after Whisper's English normalisation of both sides; in brackets its 95 % interval over resampled utterances.
CER counts characters in the same way. The raw WER compares the texts as they are, case and punctuation too. The
real-time factor is the time from samples to words over the audio's length; reading the files is left out."""


@dataclass(frozen=True)
class SetResult:
    """One set's transcripts, and their errors."""

    name: str
    """The set's name; names differ within a report."""
    utterances: Sequence[ScoredUtterance]
    """Each one's hypothesis; empty for an unreadable file, so that all its words count as deleted."""
    seconds: float
    """Wall time of recognition, without reading files."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Reason by audio path, for the files that gave no audio."""

    @cached_property
    def wers(self) -> list[WER]:
        """Each utterance's errors, normalised."""
        return score_each(self.utterances)

    @cached_property
    def raw_wers(self) -> list[WER]:
        """Each utterance's errors in the texts as they are."""
        return score_each(self.utterances, raw=True)

    @cached_property
    def judged_words(self) -> list[tuple[float, bool]]:
        """Each word's confidence and whether it is right; without words of which that cannot be said."""
        return [
            (confidence, right)
            for utterance in self.utterances
            if utterance.confidences
            for confidence, right in zip(
                utterance.confidences, judge(utterance.reference, utterance.hypothesis), strict=True
            )
            if right is not None
        ]

    @cached_property
    def oracle(self) -> WER | None:
        """The set's errors, normalised, if the best of each utterance's texts were known; None without others."""
        if not any(utterance.n_best for utterance in self.utterances):
            return None
        total = WER()
        for utterance, wer in zip(self.utterances, self.wers, strict=True):
            others = score_each([replace(utterance, hypothesis=text) for text in utterance.n_best])
            total += min([wer, *others], key=lambda each: each.errors)
        return total

    @property
    def wer(self) -> WER:
        """The set's errors, normalised."""
        return sum(self.wers, WER())

    @property
    def raw_wer(self) -> WER:
        """The set's errors in the texts as they are."""
        return sum(self.raw_wers, WER())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the normalised rate."""
        return confidence_interval(self.wers)

    @cached_property
    def cer(self) -> float:
        """The set's character error rate, normalised."""
        return character_error_rate(self.utterances)

    @property
    def audio_seconds(self) -> float:
        """Length of the audio that could be read."""
        return sum(u.duration for u in self.utterances if u.audio not in self.unreadable)

    @property
    def real_time_factor(self) -> float:
        """Time of recognition over length of audio; 0 without audio."""
        return self.seconds / self.audio_seconds if self.audio_seconds else 0.0


def combine(results: Sequence[SetResult], name: str = "all") -> SetResult:
    """Return all sets as one."""
    return SetResult(
        name,
        [utterance for result in results for utterance in result.utterances],
        sum(result.seconds for result in results),
        {audio: reason for result in results for audio, reason in result.unreadable.items()},
    )


def percent(rate: float) -> str:
    """Return a rate as a percentage, as "12.34"."""
    return f"{100 * rate:.2f}"


def summary_line(result: SetResult) -> str:
    """Return the set's figures in one line of text."""
    wer, (low, high) = result.wer, result.interval
    return (
        f"{result.name}: {len(result.utterances)} utterances, {wer.words} words, "
        f"WER {percent(wer.rate)} % [{percent(low)}, {percent(high)}] "
        f"(S {wer.substitutions}, D {wer.deletions}, I {wer.insertions}), "
        f"CER {percent(result.cer)} %, raw WER {percent(result.raw_wer.rate)} %, RTF {result.real_time_factor:.4f}"
        + (f", WER of the best of the n best {percent(result.oracle.rate)} %" if result.oracle else "")
        + (f", {len(result.unreadable)} unreadable" if result.unreadable else "")
    )


def environment() -> dict[str, str]:
    """Return date, machine, threads, versions and, in a checkout, its commit, for the record."""
    versions = " ".join(f"{name} {number}," for name, number in package_versions(PACKAGES).items()).rstrip(",")
    commit = git_commit()
    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Machine": f"{processor_name()}, {available_cores()} logical cores; {platform.system()} {platform.machine()}",
        "Threads": str(torch.get_num_threads()),
        "Versions": f"Python {platform.python_version()}, {versions}",
        **({"Commit": commit} if commit else {}),
    }


def write_report(
    folder: str | Path,
    results: Sequence[SetResult],
    details: Mapping[str, str],
    features: LogMel,
    worst_count: int = 5,
) -> Path:
    """Write the report and return the path of its report.md; makes the folder.

    details: what the reader needs to know to repeat it, shown as they are; "Command" is shown as code.
    features: draws the spectrograms, ``worst_count`` of each set. A recording that cannot be read again is not drawn.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_utterances(folder / UTTERANCES, results)
    parts = ["# Word error rates", *_table(results), EXPLANATION, *_details({**details, **environment()})]
    for number, result in enumerate(results, 1):
        stem = f"{number}-{re.sub(r'[^A-Za-z0-9._-]+', '-', result.name)}"
        parts += _set_section(folder, stem, result, features, worst_count)
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _table(results: Sequence[SetResult]) -> list[str]:
    rows = [*results, combine(results)] if len(results) > 1 else results
    lines = [
        "| set | utterances | hours | words | WER, % | S | D | I | CER, % | raw WER, % | real-time factor |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in rows:
        wer, (low, high) = result.wer, result.interval
        cells = [
            result.name.replace("|", r"\|"),
            len(result.utterances),
            f"{result.audio_seconds / 3600:.2f}",
            wer.words,
            f"**{percent(wer.rate)}** [{percent(low)}, {percent(high)}]",
            wer.substitutions,
            wer.deletions,
            wer.insertions,
            percent(result.cer),
            percent(result.raw_wer.rate),
            f"{result.real_time_factor:.4f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return ["\n".join(lines)]


def _details(details: Mapping[str, str]) -> list[str]:
    listed = "\n".join(f"- {name}: {value}" for name, value in details.items() if name != "Command")
    command = [f"```sh\n{details['Command']}\n```"] if "Command" in details else []
    return ["## How it was made", *command, listed]


def _set_section(folder: Path, stem: str, result: SetResult, features: LogMel, worst_count: int) -> list[str]:
    from samba_asr.evaluation.plots import plot_wer_by_duration

    parts = [f"## {result.name}"]
    if result.unreadable:
        parts.append(f"Could not be read ({len(result.unreadable)}); all their words count as deleted:")
        parts.append("\n".join(f"- `{audio}`: {reason}" for audio, reason in result.unreadable.items()))
    read = [i for i, utterance in enumerate(result.utterances) if utterance.audio not in result.unreadable]
    utterances = [result.utterances[i] for i in read]
    wers = [result.wers[i] for i in read]
    buckets = score_by_duration(utterances, wers)
    if buckets:
        image = f"{stem}-by-duration.png"
        plot_wer_by_duration(folder / image, buckets, f"{result.name}: WER by duration")
        parts.append(f"![WER by duration]({image})")
    parts += _confidence_section(folder, stem, result)
    order = worst(wers, worst_count)
    if order:
        parts.append("### Worst utterances")
    for rank, i in enumerate(order, 1):
        parts += _utterance_section(folder, f"{stem}-worst-{rank}.png", utterances[i], wers[i], features)
    return parts


def _confidence_section(folder: Path, stem: str, result: SetResult) -> list[str]:
    """Return nothing where no confidence is known."""
    from samba_asr.evaluation.plots import plot_reliability

    judged = result.judged_words
    if not judged:
        return []
    bins = reliability([confidence for confidence, _ in judged], [right for _, right in judged])
    share = sum(right for _, right in judged) / len(judged)
    image = f"{stem}-confidence.png"
    plot_reliability(folder / image, bins, f"{result.name}: confidence of words")
    said = (
        f"Confidence of {len(judged)} words, of which {percent(share)} % are right: expected calibration error "
        f"{expected_calibration_error(bins):.3f}, in {len(bins)} bins of equally many words."
    )
    return [said, f"![Confidence of words]({image})"]


def _utterance_section(folder: Path, image: str, utterance: ScoredUtterance, wer: WER, features: LogMel) -> list[str]:
    said = f"{wer.errors} errors in {wer.words} words, {utterance.duration:.1f} s"
    speaker = f", speaker {utterance.speaker}" if utterance.speaker else ""
    parts = [
        f"`{utterance.audio}`: {said}{speaker}",
        f"```text\n{alignment_text(*scoring_pair(utterance))}\n```",
    ]
    if _draw(folder / image, utterance, features):
        parts.append(f"![Spectrogram]({image})")
    return parts


def _draw(path: Path, utterance: ScoredUtterance, features: LogMel) -> bool:
    from samba_asr.evaluation.plots import plot_spectrogram

    try:
        waveform = torch.from_numpy(load_audio(utterance.audio, features.config.sample_rate))
    except (OSError, ValueError):
        return False
    device = features.mel_filters.device
    with torch.inference_mode():
        drawn, _ = features(waveform[None].to(device), torch.tensor([len(waveform)], device=device))
    plot_spectrogram(path, drawn[0].cpu().numpy(), features.config, utterance.reference, utterance.hypothesis)
    return True


def _write_utterances(path: Path, results: Sequence[SetResult]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for result in results:
            for utterance, wer, raw in zip(result.utterances, result.wers, result.raw_wers, strict=True):
                line = {
                    "set": result.name,
                    **{name: value for name, value in asdict(utterance).items() if value or name not in _ASKED_FOR},
                    "errors": wer.errors,
                    **asdict(wer),
                    "raw_errors": raw.errors,
                    "raw_words": raw.words,
                    "unreadable": result.unreadable.get(utterance.audio),
                }
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
