#!/usr/bin/env python3
"""Make a checkpoint's confidences as large as the share of words that are right, and write them into its config.json.

python recipes/librispeech/calibrate.py --model runs/mine/checkpoint --manifests OUT/librispeech-dev-clean.jsonl

Half of the speakers serve to find the two numbers (words.confidence_scale and words.confidence_bias), the others to
measure what they are worth: the expected calibration error before and after is printed. Nothing else of the checkpoint
changes. Exit code: 0, 1 if the words do not suffice, 2 for wrong arguments.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

try:
    from samba_asr.config import WordConfig
    from samba_asr.evaluation.arguments import positive_int
    from samba_asr.evaluation.confidence import expected_calibration_error, fit_logistic, judge, reliability
    from samba_asr.model.checkpoint import save_config
    from samba_asr.model.pretrained import resolve_model
    from samba_asr.training.manifest import Utterance, read_manifest
    from samba_asr.transcriber import Transcriber
except ModuleNotFoundError as error:
    sys.exit(f"calibrate.py: calibration needs more packages ({error}); install them with: pip install -e '.[train]'")

DONE, TOO_FEW, USAGE = 0, 1, 2


class Judged(NamedTuple):
    """Words of the transcripts of some speakers."""

    confidences: list[float]
    right: list[bool]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder, or a name in pretrained/ (default: as transcribe.py)")
    parser.add_argument("--manifests", nargs="+", type=Path, required=True, metavar="JSONL", help="of several speakers")
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="only N utterances of each manifest, spread out"
    )
    parser.add_argument("--dry-run", action="store_true", help="print, but write nothing")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: PyTorch's)")
    return parser.parse_args(arguments)


def read_utterances(manifests: Sequence[Path], limit: int | None) -> list[Utterance]:
    """Return the utterances of manifests, at most so many of each. Raises as :func:`read_manifest` does."""
    found = []
    for path in manifests:
        utterances = read_manifest(path)
        count = min(limit or len(utterances), len(utterances))
        found += [utterances[len(utterances) * i // count] for i in range(count)]
    return found


def judge_all(transcriber: Transcriber, utterances: Sequence[Utterance], speakers: Sequence[str]) -> Judged:
    """Transcribe the utterances of some speakers and judge their words; an unreadable one is said on standard error."""
    judged = Judged([], [])
    own = [utterance for utterance in utterances if utterance.speaker in speakers]
    for utterance in tqdm(own, unit="utt", file=sys.stderr):
        try:
            transcript = transcriber.transcribe(utterance.audio)
        except (OSError, ValueError) as error:
            tqdm.write(f"calibrate.py: {error}", file=sys.stderr)
            continue
        for word, right in zip(transcript.words, judge(utterance.text, transcript.text), strict=True):
            if right is not None:
                judged.confidences.append(word.confidence)
                judged.right.append(right)
    return judged


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        folder = resolve_model(options.model)
        transcriber = Transcriber.load(folder, options.device)
        utterances = read_utterances(options.manifests, options.limit)
    except (OSError, ValueError) as error:
        print(f"calibrate.py: error: {error}", file=sys.stderr)
        return USAGE
    speakers = sorted({utterance.speaker for utterance in utterances})
    if len(speakers) < 2:
        print(f"calibrate.py: error: the manifests have {len(speakers)} speaker: give two or more", file=sys.stderr)
        return USAGE
    raw = replace(transcriber.words, confidence_scale=1.0, confidence_bias=0.0)
    transcriber.words = raw
    try:
        scale, bias = fit_logistic(*judge_all(transcriber, utterances, speakers[::2]))
        if scale < 0:
            raise ValueError(f"scale ({scale:.3f}) must not be negative: surer words are less often right")
    except ValueError as error:
        print(f"calibrate.py: {error}", file=sys.stderr)
        return TOO_FEW
    fitted = replace(raw, confidence_scale=round(scale, 4), confidence_bias=round(bias, 4))
    print(f"confidence_scale {fitted.confidence_scale}, confidence_bias {fitted.confidence_bias}")
    for name, config in (("raw", raw), ("calibrated", fitted)):
        print(f"{name}: {summary(transcriber, config, utterances, speakers[1::2])}")
    if not options.dry_run:
        save_config(folder, replace(transcriber.model.config, words=fitted))
    return DONE


def summary(
    transcriber: Transcriber, config: WordConfig, utterances: Sequence[Utterance], speakers: Sequence[str]
) -> str:
    """Return in a line how well the confidences of a setting fit the words of some speakers."""
    transcriber.words = config
    judged = judge_all(transcriber, utterances, speakers)
    error = expected_calibration_error(reliability(*judged))
    share = sum(judged.right) / max(1, len(judged.right))
    return (
        f"{len(judged.right)} words of {len(speakers)} speakers, {100 * share:.1f} % right, "
        f"expected calibration error {error:.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
