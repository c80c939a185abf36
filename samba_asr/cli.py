"""The command line: recordings in, words out."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tqdm import tqdm

from samba_asr import __version__, mic
from samba_asr.config import Precision, Search
from samba_asr.console import PROGRAM, discard, reason, say, survive_any_encoding
from samba_asr.job import Form, transcribe_all
from samba_asr.model.pretrained import MODEL_VARIABLE, PRETRAINED, pretrained_models, resolve_model
from samba_asr.outputs import Outputs, make_writable, output_paths
from samba_asr.recordings import STDIN, SUFFIXES, Recording, find_recordings, may_be_several
from samba_asr.search_options import add_search_options, search_settings
from samba_asr.subtitles import LINE, LONGEST
from samba_asr.writers import LINEWISE, WRITERS

if TYPE_CHECKING:
    from samba_asr.transcriber import Transcriber

DONE, SOME_FAILED, USAGE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141

DESCRIPTION = """\
Print the words of recordings, in any format that libsndfile or FFmpeg reads.

The words go to standard output, everything else to standard error. With several
recordings, a folder or a pattern each line is the path, a tab and the words, in the
order given; a path that holds a tab or a line break is written with \\t, \\n, \\r and \\\\.

Of recordings longer than 30 s only what is spoken is transcribed, in spans of at most
30 s, several at once: memory does not grow with a recording's length."""

EPILOG = """\
examples:
  {program} talk.wav                            the words, and nothing else
  {program} *.mp3 > words.tsv                   one line a recording: path, tab, words
  {program} talks 'more/**/*.mp4'               a folder's recordings and those that match
  curl -s https://host/talk.mp3 | {program} -   from standard input
  {program} -f srt talk.mp4 > talk.srt          subtitles
  {program} -f json *.mp3                       one JSON object a line
  {program} --output-dir words *.mp3            words/NAME.txt for each, nothing on standard output
  {program} -f srt -f json --output-dir words --skip-existing talks
                                               two files for each; goes on where it was interrupted
  {program} --word-timestamps talk.wav          the words, then a line for each with its seconds
  {program} --hotwords Nadezhda,Kubernetes talk.wav   names that it would not know
  {program} --model runs/mine/checkpoint a.wav  your own model
  {program} mic                                 what a microphone hears, while it is said ({program} mic --help)

recordings:
  A folder stands for the files in it and in its folders that end in one of
{suffixes}
  and are not hidden. A pattern in quotes (*, ?, [...], ** for any folders) stands for what
  it matches. - is standard input; outputs call it stdin. A damaged recording gives what can
  be decoded of it, and a warning where decoding tells that something is missing; one without
  any sound an empty text and a warning.

formats:
  txt   the words
  srt, vtt   subtitles: two lines of at most {line} characters for at most {longest:g} seconds
  tsv   a line for each segment (the words between pauses): start and end in milliseconds, text
  json  path, duration, text, confidence, model; more where it is asked for

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
        survive_any_encoding(sys.stdout)
        argv = sys.argv[1:] if argv is None else argv
        if argv and argv[0] == "mic":
            return mic.run(argv[1:])
        return _run(_parser().parse_args(argv))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout)
        return PIPE_CLOSED
    except OSError as error:
        discard(sys.stdout)
        say("standard output", error)
        return SOME_FAILED


def _parser() -> argparse.ArgumentParser:
    suffixes = textwrap.fill(" ".join(sorted(SUFFIXES)), 88, initial_indent="  ", subsequent_indent="  ")
    shape = {"line": LINE, "longest": LONGEST, "suffixes": suffixes}
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG.format(program=PROGRAM, variable=MODEL_VARIABLE, names=_known_models(), **shape),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "audio", nargs="+", metavar="AUDIO", help="a recording, a folder of them, a pattern in quotes, or - (see below)"
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    loudness.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say which model runs where, and of each recording what time it took, of a batch its share",
    )
    _add_output(parser.add_argument_group("output"))
    _add_model(parser.add_argument_group("model and machine"))
    _add_search(parser.add_argument_group("search"))
    return parser


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-f",
        "--output-format",
        action="append",
        choices=tuple(WRITERS),
        help="how transcripts are written (see below); several times with --output-dir (default: txt)",
    )
    group.add_argument(
        "--word-timestamps",
        action="store_true",
        help="json: also segments, and words, a list of text, start, end (seconds) and confidence (0 to 1) each; txt: "
        "below the words a line for each: start, end, confidence and the word, separated by tabs, after its path where "
        "there is one",
    )
    group.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="write a file for each recording and format, named after the recording, instead of printing",
    )
    group.add_argument(
        "--skip-existing", action="store_true", help="leave out recordings whose files are all in --output-dir"
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="MODEL", help="a checkpoint folder or a model's name (see below)")
    group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    group.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="type in which the encoder multiplies; bfloat16 is quicker on CPUs with AMX, and changes a word in some "
        "hundreds; GPUs need to be Ampere or newer for it (default: float32)",
    )
    group.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: PyTorch's choice)")
    group.add_argument(
        "--vad",
        action=argparse.BooleanOptionalAction,
        help="find where somebody speaks, and transcribe that alone; --no-vad: leave nothing out, the encoder takes "
        "long recordings in one pass (default: --vad where a recording lasts more than 30 s)",
    )
    group.add_argument(
        "--batch-size",
        type=_positive,
        metavar="N",
        help="spans at once, of one recording or several (default: 2, on a GPU 16)",
    )


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--search",
        choices=get_args(Search),
        help="ctc: the encoder alone; autoregressive: the decoder, piece by piece; rescoring: the decoder chooses "
        "among the encoder's best texts; joint: both weigh every text on the way (default: the model's)",
    )
    add_search_options(group)
    group.add_argument(
        "--nbest",
        type=_positive,
        default=1,
        metavar="N",
        help="joint: the N best texts, no more than the beam holds; txt: a line for each below the words, score and "
        "text; json: n_best, a list of text and score each (default: the best alone)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def _known_models() -> str:
    try:
        default, models = pretrained_models()
    except (OSError, ValueError):
        return ""
    lines = [f"  Names in {PRETRAINED}:"] if models else []
    lines += [f"    {name}{' (default)' if name == default else ''}: {about}" for name, about in models.items()]
    return "".join(f"{line}\n" for line in lines)


def _run(arguments: argparse.Namespace) -> int:
    form = Form(
        formats=tuple(dict.fromkeys(arguments.output_format or ["txt"])),
        word_timestamps=arguments.word_timestamps,
        several=len(arguments.audio) > 1 or may_be_several(arguments.audio[0]),
        quiet=arguments.quiet,
        verbose=arguments.verbose,
        n_best=arguments.nbest,
    )
    if problem := _contradiction(arguments, form):
        return _usage_error(problem)
    recordings = find_recordings(arguments.audio)
    outputs: Sequence[Outputs | None] = [None] * len(recordings)
    if arguments.output_dir is not None:
        try:
            make_writable(arguments.output_dir)
        except OSError as error:
            return _usage_error(f"--output-dir {arguments.output_dir}: {reason(error, '')}")
        outputs = output_paths(recordings, arguments.output_dir, form.formats)
    try:
        model = resolve_model(arguments.model)
        tasks = _left_to_do(recordings, outputs, arguments)
        transcriber = _loaded(model, arguments) if tasks else None
    except (OSError, ValueError, RuntimeError) as error:
        return _usage_error(" ".join(str(error).split()))
    show_progress = len(tasks) > 1 and not arguments.quiet and sys.stderr.isatty()
    done = transcribe_all(transcriber, tasks, form) if transcriber else iter(())
    progress = tqdm(done, total=len(tasks), disable=not show_progress, unit="file", file=sys.stderr)
    return DONE if all([*progress]) else SOME_FAILED


def _contradiction(arguments: argparse.Namespace, form: Form) -> str:
    """Say what cannot be done together, or nothing."""
    if arguments.audio.count(STDIN) > 1:
        return f"{STDIN} (standard input) can be read only once"
    if STDIN in arguments.audio and (sys.stdin is None or sys.stdin.isatty()):
        return f"{STDIN} (standard input) is closed or a terminal; send a recording to it: {PROGRAM} {STDIN} < talk.mp3"
    if arguments.output_dir is not None:
        return ""
    if arguments.skip_existing:
        return "--skip-existing needs --output-dir: it looks there for what is done"
    if len(form.formats) > 1:
        return f"several formats ({', '.join(form.formats)}) need --output-dir: one file for each"
    if form.several and form.formats[0] not in LINEWISE:
        return f"--output-format {form.formats[0]} of several recordings needs --output-dir: one file for each"
    return ""


def _left_to_do(
    recordings: Sequence[Recording], outputs: Sequence[Outputs | None], arguments: argparse.Namespace
) -> list[tuple[Recording, Outputs | None]]:
    """Leave out what is done, and tell of it and of new names."""
    tasks = []
    for recording, output in zip(recordings, outputs, strict=True):
        done = arguments.skip_existing and output is not None and output.exist
        if not arguments.quiet and output is not None and output.renamed:
            say(recording.name, output.renamed)
        if not arguments.quiet and done:
            say(recording.name, "skipped, because its output exists")
        if not done:
            tasks.append((recording, output))
    return tasks


def _loaded(model: Path, arguments: argparse.Namespace) -> "Transcriber":
    import torch  # takes two seconds: not before there is a model and something to do

    from samba_asr.transcriber import Transcriber

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transcriber = Transcriber.load(
        model,
        arguments.device,
        arguments.search,
        **search_settings(arguments),
        vad=arguments.vad,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
    )
    transcriber.check(arguments.nbest)
    if arguments.verbose:
        where = f"{transcriber.search.search} search on {arguments.device}, {transcriber.precision}"
        say(f"model {transcriber.name}", f"{where}, CPU threads: {torch.get_num_threads()}")
        say("long recordings", transcriber.cutter.way)
    return transcriber


def _usage_error(problem: str) -> int:
    say("error", problem)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
