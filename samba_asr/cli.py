"""The command line: recordings in, words out."""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO, get_args

from tqdm import tqdm

from samba_asr import __version__
from samba_asr.atomic import replacing
from samba_asr.config import Search
from samba_asr.model.pretrained import MODEL_VARIABLE, PRETRAINED, pretrained_models, resolve_model

if TYPE_CHECKING:
    from samba_asr.transcriber import Transcriber
    from samba_asr.transcript import Transcript

PROGRAM = "samba-asr"
DONE, SOME_FAILED, USAGE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141

ESCAPES = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"})

DESCRIPTION = """\
Print the words of recordings, in any format that libsndfile or FFmpeg reads.

The words go to standard output, everything else to standard error. With several
recordings each line is the path, a tab and the words, in the order given; a path
that holds a tab or a line break is written with \\t, \\n, \\r and \\\\.

Each recording is held in memory as a whole, about 65 MB a minute with a tiny model:
cut recordings of hours into pieces."""

EPILOG = """\
examples:
  {program} talk.wav                            the words, and nothing else
  {program} *.mp3 > words.tsv                   one line a recording: path, tab, words
  {program} --output-format json *.mp3          one JSON object a line
  {program} --output-dir words *.mp3            words/NAME.txt for each, nothing on standard output
  {program} --word-timestamps talk.wav          the words, then a line for each with its seconds
  {program} --model runs/mine/checkpoint a.wav  your own model

models:
  --model takes a checkpoint folder or a name. Without it: the environment variable
  {variable}, then the default of the checkout.
{names}
exit status:
  0 all done   1 some recordings failed   2 wrong usage (no such model, bad option,
  output folder not writable)   130 interrupted   141 standard output was closed"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    try:
        _survive_any_encoding(sys.stdout)
        return _run(_parser().parse_args(argv))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout)
        return PIPE_CLOSED
    except OSError as error:
        _discard(sys.stdout)
        _complain("standard output", error)
        return SOME_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG.format(program=PROGRAM, variable=MODEL_VARIABLE, names=_known_models()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="a recording")
    parser.add_argument("--model", metavar="MODEL", help="a checkpoint folder or a model's name (see below)")
    parser.add_argument(
        "--output-format",
        choices=("txt", "json"),
        default="txt",
        help="json: path, duration, text, confidence, model (default: txt)",
    )
    parser.add_argument(
        "--word-timestamps",
        action="store_true",
        help="json: also words, a list of text, start, end (seconds) and confidence (0 to 1); txt: below the words a "
        "line for each: start, end, confidence and the word, separated by tabs, after its path where there is one",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="write one file for each recording, named after it, instead of printing",
    )
    parser.add_argument(
        "--search",
        choices=get_args(Search),
        help="ctc: the encoder alone; autoregressive: the decoder, piece by piece; rescoring: the decoder chooses "
        "among the encoder's best texts; joint: both weigh every piece on the way (default: the model's)",
    )
    parser.add_argument(
        "--beam-size",
        type=int,
        metavar="N",
        help="rescoring: texts that the decoder chooses from; joint: texts kept on the way (default: the model's)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _known_models() -> str:
    try:
        default, models = pretrained_models()
    except (OSError, ValueError):
        return ""
    lines = [f"  Names in {PRETRAINED}:"] if models else []
    lines += [f"    {name}{' (default)' if name == default else ''}: {about}" for name, about in models.items()]
    return "".join(f"{line}\n" for line in lines)


def _run(arguments: argparse.Namespace) -> int:
    paths: list[str] = arguments.audio
    outputs: Sequence[Path | None] = [None] * len(paths)
    if arguments.output_dir is not None:
        try:
            _make_writable(arguments.output_dir)
        except OSError as error:
            return _usage_error(f"--output-dir {arguments.output_dir}: {_reason('', error)}")
        outputs = output_paths(paths, arguments.output_dir, arguments.output_format)
    try:
        model = resolve_model(arguments.model)
        from samba_asr.transcriber import Transcriber  # takes torch's two seconds: not before there is a model

        transcriber = Transcriber.load(
            model, device=arguments.device, search=arguments.search, beam_size=arguments.beam_size
        )
    except (OSError, ValueError, RuntimeError) as error:
        return _usage_error(" ".join(str(error).split()))
    show_progress = len(paths) > 1 and sys.stderr.isatty()
    failed = 0
    for path, output in tqdm(
        list(zip(paths, outputs, strict=True)), disable=not show_progress, unit="file", file=sys.stderr
    ):
        form = Form(arguments.output_format, arguments.word_timestamps, with_path=len(paths) > 1 and output is None)
        failed += not _transcribe_one(transcriber, path, output, form)
    return SOME_FAILED if failed else DONE


class Form(NamedTuple):
    """How transcripts are written."""

    output_format: str
    """txt or json."""
    word_timestamps: bool
    """With the words one by one."""
    with_path: bool
    """txt: each line begins with the recording's path."""


def _transcribe_one(transcriber: "Transcriber", path: str, output: Path | None, form: Form) -> bool:
    """Print or write one recording's words; complain and return False where that fails."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            transcript = transcriber.transcribe(path)
        for warning in caught:
            _complain(path, str(warning.message).removeprefix(f"{path}: "))
        if output is not None:
            lines = _rendered(path, transcript, form)
            with replacing(output) as partial:
                partial.write_text(f"{lines}\n", encoding="utf-8", errors="backslashreplace", newline="\n")
            return True
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        _complain(path, error)
        return False
    _print(_rendered(path, transcript, form), sys.stdout)
    return True


def _rendered(path: str, transcript: "Transcript", form: Form) -> str:
    if form.output_format == "json":
        values = transcript.to_dict()
        names = ("duration", "text", "confidence", *(["words"] if form.word_timestamps else []), "model")
        return json.dumps({"path": path} | {name: values[name] for name in names})
    lines = [transcript.text]
    if form.word_timestamps:
        lines += [f"{w.start:.3f}\t{w.end:.3f}\t{w.confidence:.3f}\t{w.text}" for w in transcript.words]
    return "\n".join(f"{_one_field(path)}\t{line}" if form.with_path else line for line in lines)


def _one_field(path: str) -> str:
    """Escape a path that would break its line; any other is itself."""
    return path.translate(ESCAPES) if set(path) & set("\t\n\r") else path


def output_paths(paths: Sequence[str], folder: Path, extension: str) -> list[Path]:
    """Name one output for each input: its stem; where that is taken, the stem and a number, said on standard error.

    No two outputs share a name, on a file system that ignores case neither, and none is one of the inputs.
    """
    inputs = {Path(path).resolve() for path in paths}
    stems = {_same_name(Path(path).stem) for path in paths}
    taken: set[str] = set()
    outputs = []
    for path in paths:
        stem = Path(path).stem
        name, number = stem, 1
        while (
            _same_name(name) in taken
            or (number > 1 and _same_name(name) in stems)
            or (folder / f"{name}.{extension}").resolve() in inputs
        ):
            number += 1
            name = f"{stem}-{number}"
        taken.add(_same_name(name))
        outputs.append(folder / f"{name}.{extension}")
        if number > 1:
            _complain(path, f"goes to {outputs[-1]}, because {stem}.{extension} is taken by another recording")
    return outputs


def _same_name(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _print(line: str, stream: TextIO) -> None:
    tqdm.write(line, file=stream)  # print() would break into a progress bar
    stream.flush()


def _complain(path: str, problem: Exception | str) -> None:
    _print(f"{PROGRAM}: {path}: {problem if isinstance(problem, str) else _reason(path, problem)}", sys.stderr)


def _usage_error(problem: str) -> int:
    _print(f"{PROGRAM}: error: {problem}", sys.stderr)
    return USAGE


def _reason(path: str, error: Exception) -> str:
    """One line that says what went wrong, without repeating the path."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(reason).removeprefix(f"{path}: ").split())


def _survive_any_encoding(stream: TextIO) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _discard(stream: TextIO) -> None:
    """Send what is left in a stream's buffer nowhere, so that the interpreter's last flush cannot fail."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
