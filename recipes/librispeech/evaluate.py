#!/usr/bin/env python3
"""Transcribe the sets of some manifests and report their word error rates.

Prints one line a set. With --out, also writes report.md, utterances.jsonl and pictures into a folder. With several
searches, each line begins with its search and each report has a folder of its own, OUT/SEARCH.
Exit code: 0, 1 if a recording could not be read or transcribed (its words count as deleted), 2 for wrong arguments,
130 if interrupted.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tqdm import tqdm

try:
    from samba_asr.audio.load import load_audio
    from samba_asr.config import Precision, Search, SearchConfig
    from samba_asr.evaluation.arguments import natural_int, positive_int
    from samba_asr.evaluation.report import SetResult, combine, summary_line, write_report
    from samba_asr.evaluation.wer import ScoredUtterance
    from samba_asr.search_options import add_search_options, search_settings
    from samba_asr.training.manifest import Utterance, read_manifest
    from samba_asr.transcriber import Transcriber
    from samba_asr.transcript import Transcript
except ModuleNotFoundError as error:
    sys.exit(f"evaluate.py: evaluation needs more packages ({error}); install them with: pip install -e '.[train]'")

DONE, SOME_UNREADABLE, USAGE, INTERRUPTED = 0, 1, 2, 130


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder, or a name in pretrained/ (default: as transcribe.py)")
    parser.add_argument("--manifests", nargs="+", type=Path, required=True, metavar="JSONL", help="one set each")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the report goes (default: no report)")
    parser.add_argument(
        "--search",
        nargs="+",
        choices=get_args(Search),
        help="how to search, once or in several ways (the checkpoint's)",
    )
    add_search_options(parser)
    parser.add_argument(
        "--nbest",
        type=positive_int,
        default=1,
        metavar="N",
        help="joint: keep so many texts of each utterance, and tell the error rate if the best were known (1)",
    )
    parser.add_argument(
        "--word-timestamps", action="store_true", help="put the seconds of each word into utterances.jsonl"
    )
    parser.add_argument(
        "--batch-seconds", type=positive_int, default=60, metavar="S", help="audio in a batch, padding included (60)"
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N utterances of each set")
    parser.add_argument(
        "--worst", type=natural_int, default=5, metavar="N", help="worst utterances shown of each set (5)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="float32", help="as transcribe.py's (float32)"
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: PyTorch's)")
    return parser.parse_args(arguments)


def set_names(manifests: Sequence[Path]) -> list[str]:
    """Return each manifest's stem, or its path where two stems are the same.

    Raises ValueError where a manifest is given twice.
    """
    if len({path.resolve() for path in manifests}) < len(manifests):
        raise ValueError(f"--manifests names a file twice ({' '.join(map(str, manifests))}); give each set once")
    stems = [path.stem for path in manifests]
    return [str(path) if stems.count(path.stem) > 1 else path.stem for path in manifests]


def read_sets(manifests: Sequence[Path], limit: int | None = None) -> dict[str, list[Utterance]]:
    """Return each set's first ``limit`` utterances by its name.

    Raises FileNotFoundError or ValueError for a manifest that is missing, wrong or empty.
    """
    sets = {}
    for name, path in zip(set_names(manifests), manifests, strict=True):
        sets[name] = read_manifest(path)[:limit]
        if not sets[name]:
            raise ValueError(f"manifest {path} holds no utterance; give one with at least one line")
    return sets


def make_batches(durations: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Return positions in batches of like durations, longest first.

    A batch's size times its longest duration is at most ``batch_seconds``, unless it is one utterance.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(durations)), key=lambda i: -durations[i]):
        if batches and durations[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_seconds:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def read_batch(
    utterances: Sequence[Utterance], batch: Sequence[int], sample_rate: int, unreadable: dict[str, str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield position and waveform of each recording that can be read; the others' reasons go to ``unreadable``."""
    for i in batch:
        try:
            yield i, load_audio(utterances[i].audio, sample_rate)
        except (OSError, ValueError) as error:
            note_unreadable(utterances[i].audio, error, unreadable)


def note_unreadable(path: str, error: Exception, unreadable: dict[str, str]) -> None:
    """Put the reason, in one line, into ``unreadable`` and on standard error."""
    unreadable[path] = " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__
    tqdm.write(f"{path}: {unreadable[path]}; its words count as deleted", file=sys.stderr)


def transcribe_each(
    transcriber: Transcriber, waveforms: Sequence[np.ndarray], n_best: int = 1
) -> list[Transcript | RuntimeError | MemoryError]:
    """Transcribe a batch at once or, where that fails, as for want of memory, one by one; an error for each failure."""
    try:
        return list(transcriber.transcribe_batch(waveforms, n_best=n_best))
    except (RuntimeError, MemoryError) as error:
        if len(waveforms) == 1:
            return [error.with_traceback(None)]  # the traceback would keep the tensors
    return [transcribe_each(transcriber, [waveform], n_best)[0] for waveform in waveforms]


def transcribe_set(
    transcriber: Transcriber,
    name: str,
    utterances: Sequence[Utterance],
    batch_seconds: float,
    n_best: int = 1,
    with_times: bool = False,
) -> SetResult:
    """Transcribe a set's recordings, batch by batch, timing the recognition alone.

    n_best: texts kept of each, with 1 no others; with_times: keep when words are said.
    """
    scored = [ScoredUtterance(u.audio, u.duration, u.text, "", u.speaker, u.corpus) for u in utterances]
    unreadable: dict[str, str] = {}
    seconds = 0.0
    with tqdm(total=len(utterances), desc=name, unit="utt", file=sys.stderr) as progress:
        for batch in make_batches([u.duration for u in utterances], batch_seconds):
            read = list(read_batch(utterances, batch, transcriber.sample_rate, unreadable))
            start = time.perf_counter()
            transcripts = transcribe_each(transcriber, [waveform for _, waveform in read], n_best)
            seconds += time.perf_counter() - start
            for (i, _), transcript in zip(read, transcripts, strict=True):
                if isinstance(transcript, Exception):
                    note_unreadable(utterances[i].audio, transcript, unreadable)
                else:
                    scored[i] = replace(
                        scored[i],
                        hypothesis=transcript.text,
                        duration=transcript.duration,
                        confidences=tuple(round(word.confidence, 4) for word in transcript.words),
                        times=tuple((round(w.start, 3), round(w.end, 3)) for w in transcript.words if with_times),
                        n_best=tuple(each.text for each in transcript.n_best),
                    )
            progress.update(len(batch))
    return SetResult(name, scored, seconds, unreadable)


def make_writable(folder: Path) -> None:
    """Make a folder; raise OSError where it cannot be made or written into."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def search_setting(search: SearchConfig, options: argparse.Namespace, lexicon: bool) -> str:
    """Return what a reader needs to know of a search; lexicon: whether there is one."""
    if search.search in ("rescoring", "joint"):
        settings = f"{search.beam_size} texts, CTC weight {search.ctc_weight}, length bonus {search.length_bonus}"
        if search.search == "joint":
            settings += f", spelling weight {search.spelling_weight}"
            settings += (
                f", language model {options.lm}, weight {search.lm_weight}, bonus {search.lm_length_bonus}"
                if options.lm
                else ""
            )
            settings += f", hotwords {options.hotwords}, boost {search.hotword_boost}" if options.hotwords else ""
            settings += f", unknown words' penalty {search.unknown_word_penalty}" if lexicon else ""
        return f"{search.search}, {settings}"
    return search.search


def describe(options: argparse.Namespace, arguments: Sequence[str], transcriber: Transcriber) -> dict[str, str]:
    """Return what a reader of the report needs to make it again."""
    parameters = sum(parameter.numel() for parameter in transcriber.model.parameters())
    return {
        "Command": shlex.join(["python", sys.argv[0], *arguments]),
        "Model": f"{options.model or transcriber.name}, {parameters / 1e6:.1f} M parameters",
        "Search": search_setting(transcriber.search, options, transcriber.lexicon is not None),
        "Device": torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device,
        **({"Precision": options.precision} if options.precision != "float32" else {}),
        "Batches": f"at most {options.batch_seconds} s of audio, padding included",
        **({"Limit": f"the first {options.limit} utterances of each set"} if options.limit else {}),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("evaluate.py: interrupted", file=sys.stderr)
        return INTERRUPTED


def run(arguments: Sequence[str]) -> int:
    """Evaluate as the command line says; return the exit code."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        sets = read_sets(options.manifests, options.limit)
        if options.out:
            make_writable(options.out)  # a wrong folder shows before the work
        asked = options.search or [None]
        transcriber = Transcriber.load(
            options.model,
            options.device,
            "joint" if "joint" in asked else asked[0],  # of several, the one that a lexicon is for
            **search_settings(options),
            precision=options.precision,
        )
        searches = list(dict.fromkeys(options.search or [transcriber.search.search]))
        for search in searches:  # a search that does not go with the other options shows before the work
            transcriber.search = replace(transcriber.search, search=search)
            transcriber.check(options.nbest)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        return USAGE
    unreadable = False
    for search in searches:
        transcriber.search = replace(transcriber.search, search=search)
        several = len(searches) > 1
        results = evaluate_search(transcriber, sets, options, f"{search}, " if several else "")
        unreadable = unreadable or any(result.unreadable for result in results)
        if options.out:
            folder = options.out / search if several else options.out
            details = describe(options, arguments, transcriber)
            report = write_report(folder, results, details, transcriber.model.features, options.worst)
            print(f"wrote {report}", file=sys.stderr)
    return SOME_UNREADABLE if unreadable else DONE


def evaluate_search(
    transcriber: Transcriber, sets: Mapping[str, Sequence[Utterance]], options: argparse.Namespace, prefix: str
) -> list[SetResult]:
    """Transcribe all sets by the transcriber's search; print a line for each and, if several, one for all."""
    noise = np.random.default_rng(0).normal(0, 0.1, transcriber.sample_rate).astype(np.float32)
    transcriber.transcribe_batch([noise])  # first calls are slow

    results = []
    for name, utterances in sets.items():
        settings = (options.batch_seconds, options.nbest, options.word_timestamps)
        results.append(transcribe_set(transcriber, name, utterances, *settings))
        print(f"{prefix}{summary_line(results[-1])}", flush=True)
    if len(results) > 1:
        print(f"{prefix}{summary_line(combine(results))}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
