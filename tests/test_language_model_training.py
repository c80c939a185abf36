"""The recipe of the language model: settings, data, steps, resuming, and its two command lines."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from samba_asr.config import LanguageModelConfig, MixerConfig
from samba_asr.evaluation.perplexity import score_texts
from samba_asr.model.language_model_checkpoint import load_language_model
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.averaging import average_states
from samba_asr.training.callbacks import read_metrics
from samba_asr.training.config import OptimiserConfig
from samba_asr.training.language_model.cli import main, main_evaluate, parse_arguments
from samba_asr.training.language_model.data import read_sets, read_training_texts, spread, training_batches
from samba_asr.training.language_model.loop import LanguageModelRun
from samba_asr.training.language_model.run import train_language_model
from samba_asr.training.language_model.settings import LanguageTrainingConfig, PlainTextConfig, TranscriptConfig
from samba_asr.training.manifest import Utterance, write_manifest
from samba_asr.training.resume import read_checkpoint

RECIPE = Path(__file__).parents[1] / "recipes" / "language_model"
SENTENCES = [
    "the cat sat on the mat",
    "a dog barked",
    "no bird sang that day",
    "the dog sat on the cat",
    "that bird sang on the mat",
    "a cat barked that day",
]
MODEL = LanguageModelConfig(d_model=16, n_layers=1, d_ff=16, dropout=0.1, mixer=MixerConfig(d_state=8, head_dim=8))


def manifest(path, texts):
    write_manifest(path, [Utterance(f"{i}.wav", 1.0, text, "", "") for i, text in enumerate(texts)])


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A working folder with texts, manifests and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(f"{line.capitalize()}." for line in SENTENCES))
    manifest("said.jsonl", ["THE CAT SANG", "A BIRD SAT", "the dog sang", "The cat sang."])
    manifest("dev.jsonl", ["a dog sang", "The dog sang!"])
    manifest("other.jsonl", ["the mat"])
    Tokenizer.train(SENTENCES, 26).save("tokenizer.model")
    return tmp_path


@pytest.fixture
def config(texts):
    return LanguageTrainingConfig(
        data=TranscriptConfig(dev=["dev.jsonl", "other.jsonl"], train="said.jsonl", train_repeats=2),
        tokenizer="tokenizer.model",
        text=PlainTextConfig(["text.txt"]),
        model=MODEL,
        optimiser=OptimiserConfig(learning_rate=0.01, warmup_steps=2),
        batch_tokens=40,
        max_steps=8,
        validate_every=4,
        checkpoint_every=3,
        average_last=3,
        precision="32",
        accelerator="cpu",
    )


def test_an_epoch_has_every_text_as_often_as_asked_and_none_of_dev(config):
    tokenizer = Tokenizer.load("tokenizer.model")
    Path("more.txt").write_text("A dog sang.\n\n...\nA mat barked\na mat barked\n")
    config = dataclasses.replace(config, text=PlainTextConfig(["text.txt", "more.txt"], [1, 3]))
    found = sorted(tokenizer.decode(tokens) for tokens in read_training_texts(config, tokenizer))
    assert found == sorted([*SENTENCES, *["a mat barked"] * 3, *["the cat sang", "a bird sat"] * 2])


def test_epochs_go_through_all_texts_and_follow_from_the_seed():
    texts = [[10 + i] * (1 + i % 7) for i in range(60)]

    def draw(seed, start, count):
        batches = training_batches(texts, 40, seed, start)
        return [next(batches) for _ in range(count)]

    first = draw(1, 0, 20)
    for tokens, lengths in first:
        assert (tokens.shape[1] + 1) * len(tokens) <= 40
        assert all(row[:length].eq(row[0]).all() for row, length in zip(tokens, lengths, strict=True))
    for (tokens, lengths), (same, as_long) in zip(first[5:], draw(1, 5, 15), strict=True):
        assert torch.equal(tokens, same) and torch.equal(lengths, as_long)
    assert any(a[0].shape != b[0].shape for a, b in zip(first, draw(2, 0, 20), strict=True))
    seen, drawn = [], training_batches(texts, 40, 1, 0)
    while len(seen) < 60:
        seen += next(drawn)[0][:, 0].tolist()
    assert sorted(seen) == [10 + i for i in range(60)]


def test_spread_keeps_ends_apart():
    assert spread(list("abcdefgh"), 4) == list("aceg") and spread(list("ab"), 4) == list("ab")


def make_run(config, out):
    tokenizer = Tokenizer.load("tokenizer.model")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    dev = read_sets(config.data.dev_manifests, [], "spoken")
    return LanguageModelRun(config, tokenizer, dev, torch.device("cpu"), out)


def test_a_run_learns_a_handful_of_sentences_by_heart(config, tmp_path):
    """The best that can be: what is certain costs nothing, what is not its entropy: the choice of one of six texts."""
    model = dataclasses.replace(MODEL, dropout=0.0, d_model=32)
    config = dataclasses.replace(config, model=model, batch_tokens=1000, max_steps=250)
    run = make_run(config, tmp_path)
    texts = [run.tokenizer.encode(text) for text in SENTENCES]
    batches = training_batches(texts, 1000, 0, 0)
    before = score_texts(run.model, run.tokenizer, SENTENCES).nats / 6
    for _ in range(250):
        assert run.make_step(*next(batches))
    after = score_texts(run.model, run.tokenizer, SENTENCES).nats / 6
    assert before > 25 and math.log(6) <= after < math.log(6) + 0.3


@pytest.mark.parametrize(("clip", "eps"), [(0.1, 1e-8), (100.0, 1.0)])
def test_a_step_is_adamw_on_the_mean_loss_a_token(clip, eps, config, tmp_path):
    """Against a step written out, from the same weights: warm-up, clip, mean over tokens and ends. Adam's first step
    knows no gradient's size but for eps."""
    settings = OptimiserConfig(learning_rate=0.01, weight_decay=0.0, warmup_steps=4, gradient_clip=clip, eps=eps)
    model = dataclasses.replace(MODEL, dropout=0.0)
    run = make_run(dataclasses.replace(config, optimiser=settings, model=model), tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    tokens, lengths = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([3, 2])
    loss = run.model.losses(tokens, lengths).sum() / 7
    gradients = torch.autograd.grad(loss, list(run.model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert 0.1 < norm < 100
    assert run.make_step(tokens, lengths)
    rate = 0.01 / 4  # the first of four warm-up steps, at the cosine's start
    for (name, parameter), gradient in zip(run.model.named_parameters(), gradients, strict=True):
        clipped = gradient * min(1.0, clip / norm)
        expected = before[name] - rate * clipped / (clipped.abs() + eps)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)
    assert (run.progress.step, run.progress.position, run.progress.tokens) == (1, 1, 7)


def test_steps_without_a_finite_loss_are_left_out(config, tmp_path):
    run = make_run(config, tmp_path)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with torch.no_grad():
        bias = run.model.norm.bias.clone()
        run.model.norm.bias[0] = torch.inf
    batch = torch.tensor([[5, 6]]), torch.tensor([2])
    assert not run.make_step(*batch)
    assert (run.progress.step, run.progress.position, run.progress.skipped) == (0, 1, 1)
    with torch.no_grad():
        run.model.norm.bias.copy_(bias)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert run.make_step(*batch)
    with torch.no_grad():
        run.model.norm.bias[0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"20 times in a row, at step 1: lower optimiser.learning_rate"):
        for _ in range(20):
            run.make_step(*batch)


def test_the_better_of_average_and_last_weights_is_exported(config, tmp_path):
    train_language_model(config, "run")
    run = make_run(config, tmp_path / "run")
    states = [read_checkpoint(Path(f"run/checkpoints/step={step}.ckpt"))["state_dict"] for step in (3, 6, 8)]
    losses = []
    for weights in (average_states(states, states[0].keys()), states[-1]):
        run.model.load_state_dict(weights)
        losses.append(sum(score_texts(run.model, run.tokenizer, texts).nats for texts in run.dev.values()))
    every = [text for texts in run.dev.values() for text in texts]
    found = score_texts(load_language_model("run/checkpoint")[0], run.tokenizer, every)
    assert found.nats == pytest.approx(min(losses), rel=1e-5) and abs(losses[0] - losses[1]) > 1e-3 * losses[0]


def test_the_average_is_taken_where_it_is_better(config, tmp_path, monkeypatch):
    """Checkpoints on both sides of good weights: their mean is those, in the embeddings too."""
    run = make_run(config, tmp_path / "run")
    texts = [run.tokenizer.encode(text) for text in ("a dog sang", "the dog sang", "the mat")]
    batches = training_batches(texts, 1000, 0, 0)
    for _ in range(60):
        run.make_step(*next(batches))
    good = {name: value.clone() for name, value in run.model.state_dict().items()}
    noise = {name: 0.3 * torch.randn(value.shape) for name, value in run.model.named_parameters()}
    for step, sign in ((1, 1.0), (2, -1.0)):
        run.model.load_state_dict(good)
        with torch.no_grad():
            for name, parameter in run.model.named_parameters():
                parameter += sign * noise[name]
        run.progress.step = step
        run.save()
    weights, _ = run.choose_weights()
    assert weights.startswith("the average of steps 1, 2 (dev loss ")
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, good[name], rtol=1e-5, atol=1e-6)


def test_a_resumed_run_repeats_an_uninterrupted_one(config):
    whole = train_language_model(config, "whole")
    interrupted(config, "parts", 6)
    assert train_language_model(config, "parts", resume=True) == whole
    for path in ("checkpoint/model.safetensors", "checkpoint/config.json", "checkpoint/tokenizer.model"):
        assert Path("parts", path).read_bytes() == Path("whole", path).read_bytes()
    for step in (3, 6, 8):
        states = [read_checkpoint(Path(run, "checkpoints", f"step={step}.ckpt")) for run in ("whole", "parts")]
        for name, tensor in states[0]["state_dict"].items():
            assert torch.equal(tensor, states[1]["state_dict"][name]), (step, name)
    clock = ("minutes", "tokens_per_second")
    rows = [
        [{name: row[name] for name in row if name not in clock} for row in read_metrics(Path(run, "metrics.csv"))]
        for run in ("whole", "parts")
    ]
    assert rows[0][-1] == rows[1][-1] and rows[0][-1]["exported"] == 1
    assert [row["step"] for row in rows[1]] == [4, 6, 8, 8]
    assert len(json.loads(Path("parts/versions.json").read_text())["earlier"]) == 1


def interrupted(config, out, step):
    """Train until a SIGTERM comes in the given step."""
    original = LanguageModelRun.make_step

    def make_step(self, *batch):
        if self.progress.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *batch)

    LanguageModelRun.make_step = make_step
    before = signal.getsignal(signal.SIGTERM)
    try:
        train_language_model(config, out)
    finally:
        LanguageModelRun.make_step = original
    assert signal.getsignal(signal.SIGTERM) == before
    assert sorted(path.name for path in Path(out, "checkpoints").iterdir()) == ["step=3.ckpt", f"step={step}.ckpt"]
    assert f"({signal.SIGTERM.name})" in Path(out, "checkpoint", "README.md").read_text()


def test_runs_that_must_not_be_resumed(config):
    train_language_model(dataclasses.replace(config, max_steps=1), "run")
    with pytest.raises(ValueError, match=r"run is not empty: continue its run with --resume true"):
        train_language_model(config, "run")
    other = dataclasses.replace(config, model=dataclasses.replace(MODEL, d_model=32))
    with pytest.raises(ValueError, match=r"model.d_model was 16 and is now 32; resume with the run's own settings"):
        train_language_model(other, "run", resume=True)
    Tokenizer.train([*SENTENCES, "zebras quit"], 30).save("other.model")
    with pytest.raises(ValueError, match=r"the tokenizer is another one than that of"):
        train_language_model(dataclasses.replace(config, tokenizer="other.model"), "run", resume=True)
    path = Path("run/checkpoints/step=1.ckpt")
    state = torch.load(path, weights_only=True)
    state["hyper_parameters"]["training"]["data"]["text_form"] = "written"
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"data.text_form \(spoken\) was written in .*: resume with that"):
        train_language_model(config, "run", resume=True)
    Path("run/checkpoints/step=1.ckpt").write_bytes(b"words")
    with pytest.raises(ValueError, match=r"step=1.ckpt is damaged"):
        train_language_model(config, "run", resume=True)


def test_time_ends_a_run(config):
    train_language_model(dataclasses.replace(config, max_minutes=1e-9), "run")
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step=1.ckpt"]
    assert "max_minutes (1e-09) reached" in Path("run/checkpoint/README.md").read_text()
    train_language_model(dataclasses.replace(config, max_minutes=1e-9), "run", resume=True)
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step=1.ckpt"]


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_both_precisions_learn(precision, config):
    config = dataclasses.replace(config, precision=precision, max_steps=60, data=TranscriptConfig(dev="dev.jsonl"))
    train_language_model(config, "run")
    losses = [row["loss"] for row in read_metrics(Path("run/metrics.csv")) if "loss" in row]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "either recogniser .* or tokenizer"),
        ({"recogniser": "samba-tiny-en"}, "either recogniser .* or tokenizer"),
        ({"text": PlainTextConfig(), "data": TranscriptConfig(dev="d")}, "nothing to learn"),
        ({"batch_tokens": 0}, r"batch_tokens \(0\) must be positive"),
        ({"max_steps": 0}, r"max_steps \(0\)"),
        ({"average_last": 0}, r"average_last \(0\)"),
        ({"max_minutes": 0.0}, r"max_minutes \(0.0\)"),
        ({"seed": -1}, r"seed \(-1\)"),
        ({"num_threads": -1}, r"num_threads \(-1\)"),
    ],
)
def test_settings_are_checked(changes, message):
    good = {"data": TranscriptConfig(dev="dev.jsonl"), "tokenizer": "t", "text": PlainTextConfig(["a.txt"])}
    with pytest.raises(ValueError, match=message):
        LanguageTrainingConfig(**{**good, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TranscriptConfig(dev=[]), "data.dev is empty"),
        (lambda: TranscriptConfig(dev="d", train_repeats=0), r"data.train_repeats \(0\)"),
        (lambda: TranscriptConfig(dev="d", dev_utterances=0), r"data.dev_utterances \(0\)"),
        (lambda: PlainTextConfig(["a", "b"], [1]), r"text.repeats \(\[1\]\) must have a number for each of the 2"),
        (lambda: PlainTextConfig(["a"], [0]), r"text.repeats \(\[0\]\) must be positive"),
    ],
)
def test_data_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


FLAGS = (
    *("--text.files", "[text.txt]", "--data.train", "[said.jsonl]", "--data.dev", "[dev.jsonl, other.jsonl]"),
    *("--model.d_model", "16", "--model.d_ff", "16", "--model.n_layers", "1", "--model.mixer.head_dim", "8"),
    *("--accelerator", "cpu", "--checkpoint_every", "2", "--validate_every", "2", "--out", "run"),
)


def script(name, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, RECIPE / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_the_whole_recipe(texts, tiny_checkpoint, capsys):
    done = script("train.py", "--recogniser", tiny_checkpoint, *FLAGS, "--max_steps", "4", "--text.repeats", "[2]")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "text.txt: 6 texts" in done.stderr and "2 times an epoch" in done.stderr
    assert re.search(r"step 2: dev loss \d\.\d+; perplexity per word: dev \d+\.\d, other \d+\.\d", done.stderr)
    assert "run/checkpoint: perplexity per word: dev " in done.stderr and "warn" not in done.stderr.lower()
    model, tokenizer = load_language_model("run/checkpoint")
    assert tokenizer.model_proto == (tiny_checkpoint / "tokenizer.model").read_bytes()
    assert model.config.vocab_size == tokenizer.vocab_size and model.config.d_model == 16
    for name in ("curves.png", "metrics.csv", "config.yaml", "versions.json"):
        assert Path("run", name).stat().st_size
    card = Path("run/checkpoint/README.md").read_text()
    assert "--text.repeats '[2]'" in card and "Transcripts of `said.jsonl`" in card
    assert "Text: `text.txt`, 2 times an epoch" in card

    assert main(["--recogniser", str(tiny_checkpoint), *FLAGS]) == 1
    assert capsys.readouterr().err.strip().startswith("train.py: error: run is not empty")
    assert main(["--config", "run/config.yaml", "--out", "run", "--resume", "true", "--max_steps", "6"]) == 0
    assert Path("run/checkpoints/step=6.ckpt").exists()

    capsys.readouterr()
    assert main_evaluate(["--lm", "run/checkpoint", "--manifests", "dev.jsonl", "--text", "text.txt"]) == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    assert [row[0] for row in rows] == ["set", "---", "dev", "text", "all"]
    expected = score_texts(load_language_model("run/checkpoint")[0], tokenizer, SENTENCES)
    assert rows[3][1:5] == [str(n) for n in (6, expected.words, expected.tokens, expected.unknown)]
    rates = expected.token_perplexity, expected.word_perplexity, expected.nats_per_character
    assert list(map(float, rows[3][5:])) == pytest.approx(list(rates), rel=1e-3)
    assert f"| {' | '.join(rows[2][:5])} |" in Path("run/checkpoint/README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--text.files", "[none.txt]"], "none.txt"),
        (["--text.files", "[empty.txt]"], "empty.txt hold no sentence"),
        (["--data.dev", "none.jsonl"], "manifest none.jsonl does not exist"),
        (["--data.train", "dev.jsonl"], "data.train: dev.jsonl have no transcript that can be learnt"),
        (["--data.dev", "[dev.jsonl, dev.jsonl]"], "a file is named twice"),
        (["--data.text_form", "written"], "needs a tokenizer that knows capitals"),
        (["--tokenizer", "none.model"], "tokenizer none.model does not exist"),
        (["--tokenizer", "null", "--recogniser", "nobody"], "'nobody') is neither a folder nor a known name"),
        *([] if torch.cuda.is_available() else [(["--accelerator", "gpu"], "accelerator (gpu) cannot be used here")]),
    ],
)
def test_files_that_cannot_be_used_are_one_line(change, message, texts, capsys):
    Path("empty.txt").write_text("...\n")
    assert main(["--tokenizer", "tokenizer.model", *FLAGS, *change]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: error: ") and message in error
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lm", "none", "--text", "text.txt"], "model folder none does not exist"),
        (["--lm", "RECOGNISER", "--text", "text.txt"], "holds a recogniser; give the folder of a language model"),
        (["--lm", "none"], "name manifests or text files"),
        (["--lm", "none", "--text", "text.txt", "text.txt"], "a file is named twice"),
        (["--lm", "none", "--text", "empty.txt"], "empty.txt has no words"),
        (["--lm", "none", "--text", "binary"], "binary is not UTF-8"),
        (["--lm", "none", "--manifests", "none.jsonl"], "none.jsonl does not exist"),
    ],
)
def test_evaluate_says_in_one_line_what_it_cannot_use(arguments, message, texts, tiny_checkpoint, capsys):
    Path("empty.txt").write_text("...\n")
    Path("binary").write_bytes(b"\xff\xfe\x00")
    assert main_evaluate([str(tiny_checkpoint) if each == "RECOGNISER" else each for each in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate.py: error: ") and message in error and error.count("\n") == 1


def test_sets_of_one_name_are_told_apart(texts):
    Path("more").mkdir()
    Path("more/text.txt").write_text("Words, words.\n")
    assert list(read_sets([], ["text.txt", "more/text.txt"], "spoken")) == ["text.txt", "more/text.txt"]
    assert read_sets(["dev.jsonl"], ["more/text.txt"], "written") == {
        "dev": ["a dog sang", "The dog sang!"],
        "text": ["Words, words."],
    }


def test_help_teaches():
    for name, words in (
        ("train.py", ["teaches", "example:", "--text.repeats", "Times that each of these files comes in an epoch"]),
        ("evaluate.py", ["--lm FOLDER", "--text-form", "counts as a token, a word"]),
    ):
        done = script(name, "--help")
        assert done.returncode == 0 and done.stderr == ""
        text = " ".join(done.stdout.split())
        assert all(each in text for each in words)


def test_settings_are_read_from_yaml_and_flags(texts):
    arguments = parse_arguments(["--tokenizer", "t", *FLAGS, "--optimiser.learning_rate", "0.5"])
    assert arguments.config.optimiser == OptimiserConfig(0.5, 0.05, (0.9, 0.98), 1e-8, 100, 0.01, 1.0)
    assert arguments.config.model.mixer.expand == 1  # the language model's default, not the recogniser's
    Path("written.yaml").write_text(yaml.safe_dump(arguments.config.to_dict()))
    again = parse_arguments(["--config", "written.yaml", "--out", "run"])
    assert again.config.to_dict() == arguments.config.to_dict()


@pytest.mark.parametrize("change", [["--batch_tokens", "0"], ["--model.mixer.kind", "hydra"], ["--text.lines", "3"]])
def test_settings_that_cannot_be_are_usage_errors(change, texts, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--tokenizer", "t", *FLAGS, *change])
    assert stop.value.code == 2 and capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_without_the_extra_train_it_says_what_to_install(name):
    path = str(RECIPE / name)
    code = f"import runpy, sys; sys.modules['jsonargparse'] = None; runpy.run_path({path!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{name}: ") and "'.[train]'" in done.stderr and len(done.stderr.splitlines()) == 1
