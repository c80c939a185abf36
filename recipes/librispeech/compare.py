#!/usr/bin/env python3
"""Tell whether one evaluation is better than another by more than chance: a paired bootstrap of the word error rates.

python recipes/librispeech/compare.py REPORT_A REPORT_B [REPORT_C ...]

REPORT is a folder that evaluate.py --out wrote, each over the same manifests. For every set, and for all together, a
line says both rates, how much lower B's is (with its 95 % interval), and p: in what share of draws of utterances it is
not lower. Below 0.05, chance is a poor explanation. Exit code: 0, 2 for wrong arguments.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

try:
    from samba_asr.evaluation.arguments import positive_int
    from samba_asr.evaluation.report import UTTERANCES
    from samba_asr.evaluation.wer import WER, paired_bootstrap
except ModuleNotFoundError as error:
    sys.exit(f"compare.py: evaluation needs more packages ({error}); install them with: pip install -e '.[train]'")

DONE, USAGE = 0, 2

Scores = dict[str, dict[tuple[str, int], WER]]
"""Of each set, by each recording's path and how often that came before."""


def read_scores(folder: Path) -> Scores:
    """Return the word errors of a report.

    Raises FileNotFoundError, or ValueError for a file that evaluate.py did not write.
    """
    path = folder / UTTERANCES
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; evaluate.py --out {folder} writes it")
    scores: Scores = defaultdict(dict)
    seen: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            values = json.loads(line)
            counts = (values[name] for name in ("substitutions", "deletions", "insertions", "words"))
            name, audio = values["set"], values["audio"]
            scores[name][audio, seen[name, audio]] = WER(*map(int, counts))
            seen[name, audio] += 1
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not evaluate.py's ({error!r})") from error
    if not scores:
        raise ValueError(f"{path} holds no utterance")
    return scores


def compare(first: Scores, second: Scores, resamples: int) -> list[list[str]]:
    """Return a row for each set and, if several, for all together. Raises ValueError for other utterances."""
    if {name: set(of_set) for name, of_set in first.items()} != {name: set(of_set) for name, of_set in second.items()}:
        raise ValueError(
            "the reports are not of the same utterances; give evaluate.py the same --manifests and --limit"
        )
    sets = {name: ([*of_set.values()], [second[name][place] for place in of_set]) for name, of_set in first.items()}
    if len(sets) > 1:
        sets["all"] = tuple([wer for pair in sets.values() for wer in pair[side]] for side in (0, 1))
    rows = []
    for name, (before, after) in sets.items():
        lower, (low, high), p = paired_bootstrap(before, after, resamples)
        rates = (sum(wers, WER()).rate for wers in (before, after))
        figures = [f"{100 * value:.2f}" for value in (*rates, lower)]
        rows.append([name, *figures, f"[{100 * low:.2f}, {100 * high:.2f}]", f"{p:.4f}"])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each report after the first; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, metavar="REPORT_A", help="what the others are compared with")
    parser.add_argument("others", type=Path, nargs="+", metavar="REPORT", help="what may be better")
    parser.add_argument(
        "--resamples", type=positive_int, default=10_000, metavar="N", help="draws of utterances (10000)"
    )
    options = parser.parse_args(arguments)
    try:
        first = read_scores(options.first)
        tables = [(folder, compare(first, read_scores(folder), options.resamples)) for folder in options.others]
    except (OSError, ValueError) as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        return USAGE
    for folder, rows in tables:
        print(f"A: {options.first}, B: {folder}\n")
        print("| set | WER of A, % | WER of B, % | lower by | 95 % of draws | p |\n|---|---:|---:|---:|---|---:|")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
