"""Run the ablations of FINDINGS.md: many short runs of distil.py and train.py that differ in one thing each."""

import argparse
import csv
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from samba_asr.model.checkpoint import load_checkpoint, save_checkpoint
from samba_asr.model.pretrained import resolve_model
from samba_asr.text.normalization import TextForm, normalize_text
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.data import read_manifests

RECIPES = Path(__file__).parent.parent
DESCRIPTION = """\
Short runs of equal time, each with one thing changed from its group's first row (written text: from that of the same
utterances), and a table of what came out: OUT/results.csv, a row a run. A row that is there already is not run again.
Every figure is of development sets.

  encoder  distil.py, both stages: error of the states, WER through the teacher's own decoder
  head     train.py, new blocks and CTC head on MODEL's distilled blocks, which stay frozen: CTC's loss and WER
  joint    train.py from MODEL, all of it: CTC's loss and WER, the decoder's loss
  decoder  train.py, the decoder alone on transcripts and text: its loss
"""
EPILOG = """\
example (one core, 8 minutes a run):
  python recipes/whisper_to_samba/ablate.py --prepared OUT --teacher WHISPER --teacher-tokenizer TOKENIZER_JSON \\
      --text sentences.txt --model MODEL --minutes 8 --out ablations
"""
TRAINING = ("librispeech-train-clean-5", "commonvoice-train", "speechocean762-train", "ljspeech-train")
SYNTHETIC = "synthetic-hibari-train"
DEV = ("librispeech-dev-clean", "commonvoice-dev", "speechocean762-dev")
COLUMNS = ("group", "row", "minutes", "audio_hours", "parameters", "error", "dev_wer", "ctc_nats", "decoder_nats")


@dataclass(frozen=True)
class Row:
    """One run: the flags in which it differs from the row that it is compared with."""

    group: str
    name: str
    flags: tuple[str, ...] = ()
    vocab_size: int = 256
    synthetic: str = "some"
    """How much synthetic speech: none, some (as the recipe has it) or only."""
    labelled: bool = False
    """Trains on what pseudo_label.py wrote, instead of on all of --prepared's manifests."""
    text_form: TextForm = "spoken"
    """What is learnt to write; its tokenizer is trained on that."""
    teacher: str = "teacher"


ROWS = (
    Row("encoder", "as shipped"),
    Row("encoder", "another seed", ("--seed", "1")),
    Row("encoder", "mixer: mamba", ("--mixer.kind", "mamba")),
    Row("encoder", "mixer: hydra", ("--mixer.kind", "hydra")),
    Row("encoder", "mixer: s4d", ("--mixer.kind", "s4d")),
    Row("encoder", "state size 16", ("--mixer.d_state", "16")),
    Row("encoder", "state size 128", ("--mixer.d_state", "128")),
    Row("encoder", "one group of B and C", ("--mixer.groups", "1")),
    Row("encoder", "mixers twice as wide", ("--mixer.expand", "2")),
    Row("encoder", "one set of projections", ("--shared_projections", "true")),
    Row("encoder", "a state each 20 ms", ("--subsampling", "whisper")),
    Row("encoder", "a state each 80 ms", ("--subsampling", "whisper8x")),
    Row("encoder", "teacher: base", teacher="other_teacher"),
    Row("head", "as shipped"),
    Row("head", "another seed", ("--seed", "1")),
    Row("head", "64 pieces", vocab_size=64),
    Row("head", "1000 pieces", vocab_size=1000),
    Row("head", "no synthetic speech", synthetic="none"),
    Row("head", "synthetic speech alone", synthetic="only"),
    Row("head", "as shipped, the same utterances", labelled=True),
    Row("head", "written text (case and punctuation)", labelled=True, text_form="written"),
    Row("joint", "CTC weight 1", ("--decoder_from_step", "1000000")),
    Row("joint", "CTC weight 0.5"),
    Row("joint", "CTC weight 0.3", ("--ctc_weight", "0.3")),
    Row("decoder", "as shipped: 2 blocks, random start"),
    Row("decoder", "another seed", ("--seed", "1")),
    Row("decoder", "1 block", ("--model.decoder.n_layers", "1")),
    Row("decoder", "4 blocks", ("--model.decoder.n_layers", "4")),
    Row("decoder", "no text without recordings", ("--text.files", "[]")),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 where a run failed, 2 for usage."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if row.group in options.groups and (not options.rows or row.name in options.rows)]
    unknown = set(options.rows or ()) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"--rows {', '.join(sorted(unknown))}: there are {', '.join(dict.fromkeys(r.name for r in ROWS))}")
    if not rows:
        parser.error(f"--groups {' '.join(options.groups)} has none of --rows {', '.join(options.rows)}")
    other = (options.other_teacher, options.other_teacher_tokenizer)
    for row in rows:
        if row.teacher == "other_teacher" and None in other:
            parser.error(f"row {row.name!r} needs --other-teacher and --other-teacher-tokenizer")
        if row.labelled and options.written is None:
            parser.error(f"row {row.name!r} needs --written: the folder that pseudo_label.py made of --prepared's")
        if row.group != "encoder" and options.model is None:
            parser.error(f"group {row.group} needs --model: a checkpoint of conf/tiny.yaml's sizes to start from")
        if row.group == "decoder" and not options.text:
            parser.error("the decoder's rows need --text: sentences to learn from")
    return max([run_row(row, options) for row in rows], default=0)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ablate.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = tuple(dict.fromkeys(row.group for row in ROWS))
    parser.add_argument(
        "--prepared",
        type=Path,
        required=True,
        help=f"prepare.py's folder, with manifests of {', '.join((*TRAINING, SYNTHETIC, *DEV))}",
    )
    parser.add_argument("--teacher", type=Path, required=True, help="Whisper checkpoint")
    parser.add_argument("--teacher-tokenizer", type=Path, required=True, help="its tokenizer.json")
    parser.add_argument("--other-teacher", type=Path, help="Whisper checkpoint of another size, for its row")
    parser.add_argument("--other-teacher-tokenizer", type=Path, help="its tokenizer.json")
    parser.add_argument(
        "--written",
        type=Path,
        help="pseudo_label.py's folder, with those training manifests, for the row of written text and for the row of "
        "the same utterances in lower case",
    )
    parser.add_argument("--text", nargs="+", default=[], help="text files, a sentence a line, for the decoder's rows")
    parser.add_argument("--noise", type=Path, help="folder of recordings of noise")
    parser.add_argument(
        "--model",
        help="checkpoint of conf/tiny.yaml's sizes that head, joint and decoder start from (a folder, or the name of a "
        "shipped one)",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="wall-clock time of a run's training (default: 8)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default: 1)")
    parser.add_argument("--groups", nargs="+", choices=groups, default=groups, help="only these (default: all)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of results.csv")
    return parser


def run_row(row: Row, options: argparse.Namespace) -> int:
    """Run one row, unless it is in results.csv, and add it there; return 1 where its run failed."""
    results = options.out / "results.csv"
    if results.exists():
        with results.open(newline="", encoding="utf-8") as file:
            if any((found["group"], found["row"]) == (row.group, row.name) for found in csv.DictReader(file)):
                return 0
    run = options.out / f"{row.group}-{'-'.join(re.findall('[a-z0-9]+', row.name.lower()))}"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    print(f"{row.group}: {row.name}, {options.minutes:g} min, {run}", file=sys.stderr)
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    try:
        arguments = command(row, run, options)
    except (OSError, ValueError) as error:
        print(f"ablate.py: {row.group}, {row.name}: {error}", file=sys.stderr)
        return 1
    with (run / "log.txt").open("w") as log:
        done = subprocess.run([sys.executable, *arguments], stdout=log, stderr=log, env=environment, check=False)
    if done.returncode:
        print(f"ablate.py: {row.group}, {row.name}: failed, see {run / 'log.txt'}", file=sys.stderr)
        return 1
    add_result(results, read_result(row, run / "run", options))
    return 0


def command(row: Row, run: Path, options: argparse.Namespace) -> list[str]:
    """Return what is run for a row; its folder is run/run."""
    made = distil_command if row.group == "encoder" else train_command
    return [*made(row, options), "--out", str(run / "run")]


def manifests(names: Sequence[str], folder: Path) -> str:
    return f"[{','.join(str(folder / f'{name}.jsonl') for name in names)}]"


def distil_command(row: Row, options: argparse.Namespace) -> list[str]:
    layer_minutes = 0.3 * options.minutes
    settings = {
        "teacher": getattr(options, row.teacher),
        "teacher_tokenizer": getattr(options, f"{row.teacher}_tokenizer"),
        "train": manifests(TRAINING, options.prepared),
        "dev": manifests(DEV[:2], options.prepared),
        "layer_minutes": layer_minutes,
        "encoder_minutes": options.minutes - layer_minutes,
        "validate_minutes": options.minutes,
    }
    return [str(RECIPES / "whisper_to_samba" / "distil.py"), *flags(settings), *row.flags]


def train_command(row: Row, options: argparse.Namespace) -> list[str]:
    synthetic = {"none": [], "some": [SYNTHETIC], "only": [SYNTHETIC]}[row.synthetic]
    names = [*(() if row.synthetic == "only" else TRAINING), *(synthetic if row.group != "decoder" else ())]
    start = start_files(options)
    settings = {
        "config": RECIPES / "whisper_to_samba" / "conf" / "tiny.yaml",
        "data.train": manifests(names, options.written if row.labelled else options.prepared),
        "data.dev": manifests(DEV, options.prepared),
        "data.tokenizer": tokenizer_file(row, start, options),
        "data.text_form": row.text_form,
        "max_minutes": options.minutes,
        "optimiser.warmup_steps": 30,
        "validate_every": 100_000,
        "data.dev_utterances": 240,
        "num_threads": options.threads,
    }
    if options.noise is not None:
        settings["waveform_augment.noise_folder"] = options.noise
    frozen, never = {"encoder.frozen_steps": 1_000_000}, {"decoder_from_step": 1_000_000}
    if row.group == "head":
        settings |= {"encoder.weights": start / "lower.safetensors", "encoder.new_blocks": 2, **frozen, **never}
    elif row.group == "joint":
        settings |= {"init_from": start / "model", "decoder_from_step": 0, "encoder.frozen_steps": 0}
        settings |= {"optimiser.learning_rate": 3e-4, "label_smoothing": 0}
    else:
        settings |= {"encoder.weights": start / "encoder.safetensors", "encoder.new_blocks": 0, **frozen}
        settings |= {"ctc_weight": 0, "decoder_from_step": 0, "label_smoothing": 0, "optimiser.learning_rate": 1.3e-3}
        settings |= {"text.files": f"[{','.join(options.text)}]", "text.tokens": 3000, "text.weight": 1}
        settings |= {"data.batch_seconds": 16, "data.max_duration": 16, "model.decoder.dropout": 0}
    return [str(RECIPES / "librispeech" / "train.py"), *flags(settings), *row.flags]


def flags(settings: Mapping[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def start_files(options: argparse.Namespace) -> Path:
    """Write what runs start from, the model's parts, into OUT/start, unless they are there; return that folder.

    Raises ValueError where they are of another model, FileNotFoundError where there is none of that name.
    """
    start: Path = options.out / "start"
    folder = resolve_model(options.model)
    if start.exists() and (start / "origin").read_text(encoding="utf-8") != str(folder):
        raise ValueError(f"{start} is not of --model {folder}: choose another --out")
    if not start.exists():
        model, tokenizer = load_checkpoint(folder)
        encoder = {name: value.contiguous() for name, value in model.encoder.state_dict().items()}
        lower = {name: value for name, value in encoder.items() if not name.startswith(("blocks.4.", "blocks.5."))}
        with tempfile.TemporaryDirectory(dir=options.out) as temporary:
            parts = Path(temporary) / "parts"
            save_checkpoint(parts / "model", model, tokenizer, "")
            save_file(encoder, parts / "encoder.safetensors")
            save_file(lower, parts / "lower.safetensors")
            (parts / "origin").write_text(str(folder), encoding="utf-8")
            parts.rename(start)
    return start


def tokenizer_file(row: Row, start: Path, options: argparse.Namespace) -> Path:
    """Return the model's tokenizer, or one of another size or form of text, trained on the training transcripts."""
    written = row.text_form == "written"
    if not written and row.vocab_size == Tokenizer.load(start / "model" / "tokenizer.model").vocab_size:
        return start / "model" / "tokenizer.model"
    path: Path = options.out / f"tokenizer-{'written-' if written else ''}{row.vocab_size}.model"
    if not path.exists():
        folder = options.written if row.labelled else options.prepared
        transcripts = read_manifests([str(folder / f"{name}.jsonl") for name in TRAINING])
        Tokenizer.train([normalize_text(u.text, row.text_form) for u in transcripts], row.vocab_size).save(path)
    return path


def read_result(row: Row, run: Path, options: argparse.Namespace) -> dict[str, object]:
    """Return what results.csv says of a run that ended. Nats a character are nats a piece times the development sets'
    pieces a character; an utterance that a vocabulary cannot write in time is not among those scored. Written text has
    none: the development sets' transcripts lack case and punctuation, which error rates disregard."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        steps = list(csv.DictReader(file))
    last = steps[-1]
    result: dict[str, object] = {"group": row.group, "row": row.name, "minutes": options.minutes}
    result["audio_hours"] = round(float(last["audio_hours"]), 2)
    if row.group == "encoder":
        result["parameters"] = parameters(run / "encoder.safetensors")
        return result | {"error": last["dev_error"], "dev_wer": last["dev_wer"]}
    result["parameters"] = parameters(run / "checkpoint" / "model.safetensors")
    if row.group == "decoder":
        return result | {"decoder_nats": last["dev_decoder"]}
    result["dev_wer"] = last["dev_wer"]
    if row.text_form == "written":
        return result
    tokenizer = Tokenizer.load(run / "checkpoint" / "tokenizer.model")
    transcripts = read_manifests([str(options.prepared / f"{name}.jsonl") for name in DEV])
    texts = [normalize_text(utterance.text, row.text_form) for utterance in transcripts]
    pieces = sum(len(tokenizer.encode(text)) for text in texts) / sum(map(len, texts))
    result["ctc_nats"] = round(float(last["dev_ctc"]) * pieces, 4)
    learnt = row.group == "joint" and row.name != "CTC weight 1"
    return result | ({"decoder_nats": last["dev_decoder"]} if learnt else {})


def parameters(weights: Path) -> int:
    with safe_open(weights, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def add_result(path: Path, result: Mapping[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(result)


if __name__ == "__main__":
    sys.exit(main())
