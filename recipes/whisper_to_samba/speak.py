"""Have sentences spoken in many voices, as training data: see README.md beside this file, or --help."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from tqdm import tqdm

from samba_asr.training.data import read_manifests
from samba_asr.training.sentences import choose_sentences

if TYPE_CHECKING:
    from samba_asr.training.voices import Speaker

DESCRIPTION = """\
Choose sentences from texts, those with words that the ones before lack, and have hibari-tts speak them, each in a voice
of its own. Writes OUT/NNNNNN.wav (16 kHz) and OUT/manifest.tsv, which prepare.py reads. Goes on where it was stopped.

  pip install --no-deps hibari-tts==0.2.1 && pip install onnxruntime
"""
EPILOG = """\
examples:
  python recipes/whisper_to_samba/speak.py --text novels.txt dictionary.txt --count 38000 --out data/spoken \\
      --never prepared/librispeech-dev-clean.jsonl
  # on two cores, at the same time: OUT/manifest-0.tsv and OUT/manifest-1.tsv
  python recipes/whisper_to_samba/speak.py --text novels.txt --count 38000 --out data/spoken --part 0/2
  python recipes/whisper_to_samba/speak.py --text novels.txt --count 38000 --out data/spoken --part 1/2
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 where nothing can be spoken, 2 for usage, 130 after Ctrl-C."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        from samba_asr.training.voices import Speaker

        speaker = Speaker()
        groups = [path.read_text(encoding="utf-8").splitlines() for path in options.text]
        never = [utterance.text for utterance in read_manifests(options.never)] if options.never else []
        sentences = choose_sentences(groups, options.count, never, seed=options.seed)
        if not sentences:
            raise ValueError(f"{', '.join(map(str, options.text))}: no sentence of 4 to 24 words, one a line")
        speak(speaker, sentences, options)
    except ModuleNotFoundError as error:
        print(f"speak.py: more packages are needed ({error}); see --help", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"speak.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nspeak.py: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "speak.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="texts, a sentence a line; equal shares")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="sentences (about 1,000 an hour)")
    parser.add_argument("--never", nargs="+", default=[], metavar="JSONL", help="manifests of sentences to leave out")
    parser.add_argument("--out", type=Path, required=True, help="folder (made if absent)")
    parser.add_argument("--seed", type=int, default=0, help="of choice and voices (default: 0)")
    parser.add_argument(
        "--part", type=part, default=(0, 1), metavar="I/N", help="every N-th sentence from the I-th (default: 0/1, all)"
    )
    return parser


def part(text: str) -> tuple[int, int]:
    """Parse I/N."""
    first, _, parts = text.partition("/")
    if not (first.isdecimal() and parts.isdecimal() and int(first) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 0 to N - 1, such as 0/2")
    return int(first), int(parts)


def speak(speaker: "Speaker", sentences: Sequence[str], options: argparse.Namespace) -> None:
    """Speak this part's sentences, but those in its table already."""
    from samba_asr.training.voices import SAMPLE_RATE, random_voice

    first, parts = options.part
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / ("manifest.tsv" if parts == 1 else f"manifest-{first}.tsv")
    done = spoken(table, sentences)
    seconds, failed = 0.0, 0
    with table.open("a", encoding="utf-8") as out:
        if out.tell() and not table.read_bytes().endswith(b"\n"):
            out.write("\n")  # the last line was cut
        for place in tqdm(range(first, len(sentences), parts), unit="sentence", file=sys.stderr):
            name = f"{place:06d}.wav"
            if name in done:
                continue
            rng = np.random.default_rng((options.seed, place))
            voice = random_voice(rng)
            try:
                waveform = speaker(sentences[place], voice, rng)
            except Exception as error:  # what an engine makes of odd text must not end hours of work
                tqdm.write(f"speak.py: {sentences[place]!r}: {error}", file=sys.stderr)
                waveform = np.zeros(0, np.float32)
            if not len(waveform):
                failed += 1
                continue
            soundfile.write(options.out / name, waveform, SAMPLE_RATE, subtype="PCM_16")
            seconds += len(waveform) / SAMPLE_RATE
            settings = json.dumps({key: round(float(value), 3) for key, value in voice._asdict().items()})
            print(name, " ".join(sentences[place].split()), settings, sep="\t", file=out, flush=True)
    print(f"{seconds / 3600:.2f} h spoken in {options.out}; {failed} sentences could not be spoken", file=sys.stderr)


def spoken(table: Path, sentences: Sequence[str]) -> set[str]:
    """Return the names of the recordings in a table; raise ValueError where it is of other sentences."""
    if not table.exists():
        return set()
    lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    whole = [cells for cells in lines if len(cells) == 3 and cells[2].endswith("}")]
    for name, text, _ in whole:
        place = int(Path(name).stem)
        if place >= len(sentences) or " ".join(sentences[place].split()) != text:
            raise ValueError(f"{table} has other sentences ({text!r}); take another --out, or the options of then")
    return {name for name, _, _ in whole}


if __name__ == "__main__":
    sys.exit(main())
