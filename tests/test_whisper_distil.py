"""Whole runs of distil(), with a clock that advances as the test says; and the error rates that validations print."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from distil_cases import N_LAYERS, N_MELS, Clock, teacher_weights, utterances
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_whisper_vocabulary import write_vocabulary
from whisper_cases import write_openai

from samba_asr.audio.features import LogMel
from samba_asr.audio.load import load_audio
from samba_asr.config import DecoderConfig, FeatureConfig, MixerConfig, ModelConfig
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.encoder import Encoder
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.config import DataConfig, EncoderTuningConfig, TrainingConfig
from samba_asr.training.data import read_manifests
from samba_asr.training.manifest import read_manifest, write_manifest
from samba_asr.training.run import train
from samba_asr.training.schedule import learning_rate_share
from samba_asr.training.whisper import distil as module
from samba_asr.training.whisper.cli import main
from samba_asr.training.whisper.distil import Distillation, distil
from samba_asr.training.whisper.measure import TeacherWer
from samba_asr.training.whisper.network import build_teacher
from samba_asr.training.whisper.settings import DistilConfig
from samba_asr.training.whisper.student import STRIDES
from samba_asr.training.whisper.targets import TeacherStates, Windows, collect
from samba_asr.training.whisper.transcribe import transcribe_states
from samba_asr.training.whisper.vocabulary import WhisperVocabulary

STEPS = 12
"""Of each stage, with a checkpoint after every fourth."""


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Return what sets a new clock; there is one from the start."""

    def start(**settings):
        monkeypatch.setattr(module, "time", Clock(**settings))

    start()
    return start


@pytest.fixture(scope="module")
def data(clips, tmp_path_factory):
    """A teacher, its vocabulary and manifests: two windows of audio to train on, two clips for development."""
    folder = tmp_path_factory.mktemp("data")
    write_openai(folder / "teacher.pt", teacher_weights())
    write_vocabulary(folder / "tokenizer.json")
    write_manifest(folder / "train.jsonl", utterances(clips))
    write_manifest(folder / "dev.jsonl", utterances(clips[2:4]))
    return folder


def settings(data, **changes):
    config = DistilConfig(
        teacher=str(data / "teacher.pt"),
        train=[str(data / "train.jsonl")],
        dev=[str(data / "dev.jsonl")],
        mixer=MixerConfig(expand=1, d_state=8, head_dim=32),
        subsampling="whisper",
        layer_minutes=STEPS / 16,
        encoder_minutes=STEPS / 16,
        layer_windows=1,
        batch_seconds=30,
        layer_learning_rate=5e-3,
        encoder_learning_rate=5e-3,
        warmup_steps=3,
        validate_minutes=4 / 16,
        bf16=False,
    )
    return dataclasses.replace(config, **changes)


def rows(out):
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def dev_errors(out, stage):
    return [float(row["dev_error"]) for row in rows(out) if row["stage"] == stage and row["dev_error"]]


def load_encoder(out):
    """Return what a run's file says of its encoder: the encoder with these weights, and its config."""
    with safe_open(out / "encoder.safetensors", "pt") as file:
        config = ModelConfig.from_dict(json.loads(file.metadata()["config"]), complete=True)
    encoder = Encoder(config)
    encoder.load_state_dict(load_file(out / "encoder.safetensors"))
    return encoder, config


def uninterrupted(config, out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", Clock())
        assert distil(config, out) == out / "encoder.safetensors"
    return SimpleNamespace(out=out, config=config)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return uninterrupted(settings(data), tmp_path_factory.mktemp("run") / "whisper")


@pytest.fixture(scope="module")
def half_the_states(data, tmp_path_factory):
    """In mixed precision, with the teacher's vocabulary."""
    config = settings(data, subsampling="whisper4x", bf16=True, dev_utterances=1)
    config = dataclasses.replace(config, teacher_tokenizer=str(data / "tokenizer.json"))
    return uninterrupted(config, tmp_path_factory.mktemp("run") / "whisper4x")


@pytest.fixture(params=["whole", "half_the_states"])
def run(request):
    return request.getfixturevalue(request.param)


def test_the_error_falls(run):
    for stage in ("layers", "encoder"):
        errors = dev_errors(run.out, stage)
        assert len(errors) >= 3 and errors[-1] < 0.85 * errors[0], (stage, errors)


def test_a_run_leaves_its_files(run):
    names = {"config.json", "encoder.safetensors", "metrics.csv", "state.pt", "teacher"}
    assert {path.name for path in run.out.iterdir()} == names
    written = json.loads((run.out / "config.json").read_text())
    written["chunk_states"] = tuple(written["chunk_states"])
    assert written == run.config.to_dict()
    last = rows(run.out)[-1]
    assert (last["stage"], last["step"], float(last["minutes"])) == ("encoder", str(STEPS), STEPS / 16)
    assert 0.05 < float(last["audio_hours"]) < 2 * STEPS * 30 / 3600
    wers = {(row["dev_wer"] != "", row["teacher_wer"] != "") for row in rows(run.out) if row["dev_error"]}
    assert wers == {(run.config.teacher_tokenizer is not None,) * 2}


def test_the_file_is_the_encoder(run):
    """Matrices in float16, the rest as it was trained."""
    encoder, config = load_encoder(run.out)
    assert config.encoder.subsampling == run.config.subsampling and config.features.n_mels == N_MELS
    trained = torch.load(run.out / "state.pt", weights_only=True)["encoder"]
    ours = encoder.state_dict()
    assert ours.keys() == trained.keys()
    for name, value in trained.items():
        exact = value.dim() < 2 or name.endswith("A_log")
        torch.testing.assert_close(ours[name], value if exact else value.half().float(), rtol=0, atol=0)


def test_train_starts_from_the_file(run, data, tmp_path):
    """A step of train.py with a frozen encoder."""
    encoder, config = load_encoder(run.out)
    Tokenizer.train([normalize_for_training(u.text) for u in read_manifest(data / "train.jsonl")], 48).save(
        tmp_path / "tokenizer.model"
    )
    training = TrainingConfig(
        data=DataConfig(
            train=str(data / "dev.jsonl"),
            dev=str(data / "dev.jsonl"),
            tokenizer=str(tmp_path / "tokenizer.model"),
            num_workers=0,
        ),
        model=dataclasses.replace(config, vocab_size=48, decoder=DecoderConfig(n_layers=1, d_ff=32)),
        encoder=EncoderTuningConfig(weights=str(run.out / "encoder.safetensors"), frozen_steps=1),
        max_steps=1,
        accelerator="cpu",
    )
    train(training, tmp_path / "run")
    model, _ = load_checkpoint(tmp_path / "run" / "checkpoint")
    for name, value in encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name
    other = dataclasses.replace(training, model=dataclasses.replace(training.model, d_model=128))
    with pytest.raises(ValueError, match=r"encoder\.weights: .* does not fit the configured encoder"):
        train(other, tmp_path / "other")


def test_learning_rates(run):
    """Of the last step: what was copied from the teacher learns at a fifth of the rate."""
    optimiser = torch.load(run.out / "state.pt", weights_only=True)["optimiser"]
    share = learning_rate_share(STEPS - 1, (STEPS - 1) / STEPS, warmup_steps=3, final_share=0.05)
    rates = [group["lr"] for group in optimiser["param_groups"]]
    assert rates == pytest.approx([5e-3 * share, 5e-3 * share, 1e-3 * share])
    copied = [name for name in load_file(run.out / "encoder.safetensors") if ".mixer." not in name]
    assert len(optimiser["param_groups"][-1]["params"]) == len(copied)


@pytest.mark.parametrize("subsampling", ["whisper", "whisper4x"])
def test_what_the_student_is_given(subsampling, data, monkeypatch, tmp_path):
    """Stage (b): positions fade, some backward scans are cut, the log-mel is of two kinds; dev is causal and uncut."""
    calls, taken = [], []

    class Recording(Encoder):
        def forward(self, features, feature_lengths, chunk=None, offset=None):
            calls.append((self.training, features, feature_lengths, chunk, offset))
            return super().forward(features, feature_lengths, chunk, offset)

    def collecting(states, stretches, means):
        taken.append(means)
        return collect(states, stretches, means)

    monkeypatch.setattr(module, "Encoder", Recording)
    monkeypatch.setattr(module, "collect", collecting)
    changes = {"chunk_share": 0.5, "chunk_states": (3, 5), "causal_share": 0.5, "position_share": 0.25}
    config = settings(data, layer_minutes=0.0, encoder_minutes=2.0, subsampling=subsampling, **changes)
    distil(config, tmp_path / "run")
    given = [call[1:] for call in calls if call[0]]
    assert len(given) == 32
    positions = teacher_weights()["encoder.positional_embedding"][:: STRIDES[subsampling]]
    for step, (features, lengths, _, offset) in enumerate(given):
        assert len(features) * features.shape[1] <= 3000 and int(lengths.max()) == features.shape[1]
        if step < 8:
            torch.testing.assert_close(offset, positions * (1 - step / 8))
        else:
            assert offset is None
    windows = Windows(read_manifests(config.train), config.seed)
    means = TeacherStates(build_teacher(teacher_weights()), windows, tmp_path / "own", False).position_means(200)
    assert means.std() > 0.1 and all(torch.allclose(each, means, atol=1e-2) for each in taken)
    chunks = [chunk for _, _, chunk, _ in given]
    assert set(chunks) == {None, 3, 4, 5} and 8 < chunks.count(None) < 24

    def is_causal(features):
        return float(features.min()) == (FeatureConfig().log_floor + 4) / 4

    causal = [is_causal(features) for features, *_ in given]
    assert 8 < causal.count(True) < 24
    assert all(is_causal(features) and chunk is None for training, features, _, chunk, _ in calls if not training)


@pytest.mark.parametrize(
    ("interrupt_at", "resumed"),
    [(3, None), (8, ("layers", 4)), (STEPS + 4, ("layers", STEPS)), (STEPS + 12, ("encoder", 8))],
    ids=["before a checkpoint", "in (a)", "between the stages", "in (b)"],
)
def test_a_resumed_run_is_an_uninterrupted_one(interrupt_at, resumed, data, whole, clock, tmp_path, caplog):
    """Ctrl-C in the middle of some steps, some of them lost, then --resume true."""
    caplog.set_level("INFO")
    out = tmp_path / "run"
    clock(interrupt_at=interrupt_at)
    with pytest.raises(KeyboardInterrupt):
        distil(settings(data), out)
    clock()
    distil(settings(data), out, resume=True)
    if resumed is None:
        assert f"{out} has no checkpoint: starting anew" in caplog.messages
    else:
        assert "resuming stage {} at step {}".format(*resumed) in caplog.messages
    ours, theirs = (torch.load(folder / "state.pt", weights_only=True) for folder in (out, whole.out))
    assert ours["progress"] == theirs["progress"]
    for name, value in theirs["encoder"].items():
        assert torch.equal(ours["encoder"][name], value), name
    places = [[(row["stage"], row["step"], row["error"] == "") for row in rows(folder)] for folder in (out, whole.out)]
    assert places[0] == places[1]
    assert rows(out)[-1] == rows(whole.out)[-1]


def test_a_run_whose_gradients_are_not_finite_ends(data, clock, tmp_path, monkeypatch):
    error = module.relative_error
    calls = 0

    def sometimes(*arguments):
        nonlocal calls
        calls += 1
        return error(*arguments) * (torch.nan if calls % 5 else 1.0)

    monkeypatch.setattr(module, "MAX_SKIPPED_IN_A_ROW", 4)
    monkeypatch.setattr(module, "relative_error", sometimes)
    config = settings(data, layer_minutes=0.0, teacher_tokenizer=None)
    with pytest.raises(FloatingPointError, match=r"4 times in a row, at step 3 of stage encoder: lower"):
        distil(config, tmp_path / "run")


def test_a_finished_run_has_nothing_to_resume(whole, data, clock, tmp_path):
    before = {path: path.read_bytes() for path in whole.out.iterdir() if path.is_file()}
    assert distil(whole.config, whole.out, resume=True) == whole.out / "encoder.safetensors"
    assert {path: path.read_bytes() for path in whole.out.iterdir() if path.is_file()} == before


def test_another_student_cannot_be_resumed(whole, data):
    before = (whole.out / "state.pt").read_bytes()
    with pytest.raises(ValueError, match=r"(?s)state\.pt is of another student than the settings': .*size mismatch"):
        distil(settings(data, mixer=MixerConfig(expand=1, d_state=16, head_dim=32)), whole.out, resume=True)
    assert (whole.out / "state.pt").read_bytes() == before


def test_a_full_folder_is_refused(whole, data, tmp_path):
    before = sorted(path.name for path in whole.out.iterdir())
    with pytest.raises(ValueError, match="is not empty: continue its run with --resume true, or choose another --out"):
        distil(whole.config, whole.out)
    assert sorted(path.name for path in whole.out.iterdir()) == before


def test_a_whisper_encoder_starts_one_of_half_the_states(whole, data, tmp_path):
    start = str(whole.out / "encoder.safetensors")
    weights = load_file(start)
    config = settings(data, subsampling="whisper4x", init_from=start, layer_minutes=0.0, encoder_minutes=2 / 16)
    ours = Distillation(config, tmp_path / "unused").encoder.state_dict()
    assert ours.keys() - weights.keys() == {"subsampling.join.weight", "subsampling.join.bias"}
    for name, value in weights.items():
        assert torch.equal(ours[name], value.float()), name
    assert torch.equal(ours["subsampling.join.weight"][:, :, 1], torch.eye(64))
    distil(config, tmp_path / "run")
    assert {row["stage"] for row in rows(tmp_path / "run")} == {"encoder"}
    assert float(rows(tmp_path / "run")[-1]["dev_error"]) < 1.2 * float(rows(whole.out)[-1]["dev_error"])
    assert load_encoder(tmp_path / "run")[1].encoder.subsampling == "whisper4x"


def test_a_quarter_of_the_states_and_shared_projections(data, tmp_path):
    """The most sparing student, through both stages."""
    distil(settings(data, subsampling="whisper8x", shared_projections=True), tmp_path / "run")
    encoder, config = load_encoder(tmp_path / "run")
    assert (config.encoder.subsampling, config.encoder.shared_projections) == ("whisper8x", True)
    assert {row["stage"] for row in rows(tmp_path / "run")} == {"layers", "encoder"}
    _, lengths = encoder(torch.randn(1, 800, config.features.n_mels), torch.tensor([800]))
    assert lengths.tolist() == [100]


@pytest.mark.parametrize("kind", ["hydra", "s4d"])
def test_other_mixers(kind, data, tmp_path):
    """Through both stages."""
    mixer = MixerConfig(kind=kind, expand=1, d_state=8, head_dim=32)
    distil(settings(data, mixer=mixer, bf16=kind == "hydra"), tmp_path / "run")
    assert load_encoder(tmp_path / "run")[1].encoder.mixer.kind == kind
    for stage in ("layers", "encoder"):
        errors = dev_errors(tmp_path / "run", stage)
        assert errors[-1] < errors[0]


def test_what_cannot_be_started_from(whole, half_the_states, data, tmp_path):
    def start(path, **changes):
        Distillation(settings(data, init_from=str(path), **changes), tmp_path / "unused")

    file = whole.out / "encoder.safetensors"
    with pytest.raises(
        ValueError, match=r"(?s)init_from: .*encoder\.safetensors does not fit the student: .*size mismatch"
    ):
        start(file, mixer=MixerConfig(expand=2, d_state=8, head_dim=32))
    weights = load_file(file)
    for name, changed in (
        ("norm.bias", {key: value for key, value in weights.items() if key != "norm.bias"}),
        ("blocks.2.norm.bias", weights | {"blocks.2.norm.bias": torch.zeros(64)}),
    ):
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(ValueError, match=f"does not fit the student: {name} missing or not asked for"):
            start(tmp_path / "changed.safetensors", subsampling="whisper4x")
    (tmp_path / "damaged.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"init_from: .*damaged\.safetensors does not fit the student"):
        start(tmp_path / "damaged.safetensors")
    with pytest.raises(FileNotFoundError):
        start(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_seconds", 0.0, r"batch_seconds \(0\.0\) must be positive"),
        ("batch_seconds", 29.0, r"batch_seconds \(29\.0\) must be at least 30, a window's length"),
        ("layer_learning_rate", -1.0, r"layer_learning_rate \(-1\.0\) must be positive"),
        ("encoder_learning_rate", 0.0, r"encoder_learning_rate \(0\.0\) must be positive"),
        ("validate_minutes", 0.0, r"validate_minutes \(0\.0\) must be positive"),
        ("layer_windows", 0, r"layer_windows \(0\) must be positive"),
        ("dev_utterances", 0, r"dev_utterances \(0\) must be positive"),
        ("layer_minutes", -0.5, r"layer_minutes \(-0\.5\) must not be negative"),
        ("encoder_minutes", -0.5, r"encoder_minutes \(-0\.5\) must not be negative"),
        *(
            (f"{name}_share", value, rf"{name}_share \({value}\) must be in \[0, 1\]")
            for name in ("whole", "chunk", "causal", "position", "copied", "final")
            for value in (-0.1, 1.1)
        ),
        ("chunk_states", (0, 5), r"chunk_states \(\(0, 5\)\) must be two positive numbers, the shorter first"),
        ("chunk_states", (9, 5), r"chunk_states \(\(9, 5\)\) must be two positive numbers, the shorter first"),
        ("train", [], "train and dev must each name at least one manifest"),
        ("dev", [], "train and dev must each name at least one manifest"),
    ],
)
def test_bad_settings(name, value, message, data):
    with pytest.raises(ValueError, match=message):
        settings(data, **{name: value})


def test_nothing_to_do(data):
    with pytest.raises(ValueError, match=r"layer_minutes \(0\) and encoder_minutes \(0\) leave nothing to do"):
        settings(data, layer_minutes=0.0, encoder_minutes=0.0)


def test_too_little_audio(data, tmp_path):
    with pytest.raises(ValueError, match=r"2 windows of audio are fewer than layer_windows \(3\)"):
        distil(settings(data, layer_windows=3), tmp_path / "run")


def test_the_command_line(data, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--teacher", str(data / "teacher.pt"), "--train", f"[{data / 'train.jsonl'}]"]
    flags += ["--dev", f"[{data / 'dev.jsonl'}]", "--mixer.d_state", "8", "--mixer.head_dim", "32"]
    flags += ["--layer_minutes", "0", "--encoder_minutes", "0.06", "--bf16", "false", "--out", str(out)]
    assert main(flags) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith(f"{out / 'encoder.safetensors'}\n")
    config = json.loads((out / "config.json").read_text())
    assert config["mixer"] == dataclasses.asdict(MixerConfig(expand=1, groups=0, d_state=8, head_dim=32))
    assert main(flags) == 1
    assert f"distil.py: error: {out} is not empty" in capsys.readouterr().err
    assert main([*flags, "--resume", "true", "--teacher", "none.pt"]) == 1
    assert "distil.py: error: teacher none.pt does not exist" in capsys.readouterr().err
    for wrong in (["--batch_seconds", "3"], ["--subsampling", "conv4x"], ["--no_such_flag", "1"]):
        with pytest.raises(SystemExit) as stopped:
            main([*flags, *wrong])
        assert stopped.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.fixture(scope="module")
def heard(data, clips):
    """A teacher that attends to few states and writes letters only; its states of four clips and of silence, each in
    30 s, and how many of them are speech."""
    vocabulary = WhisperVocabulary.load(data / "tokenizer.json")
    weights = teacher_weights()
    for i in range(N_LAYERS):
        weights[f"decoder.blocks.{i}.cross_attn.query.weight"] *= 10
    letters = [vocabulary.encode(letter)[0] for letter in "abcdefghijklmnopqrstuvwxyz "]
    others = [i for i in range(len(weights["decoder.token_embedding.weight"])) if i not in letters]
    weights["decoder.token_embedding.weight"][others] = 0
    teacher = build_teacher(weights)
    waveforms, lengths = torch.zeros(5, 480_000), []
    for row, (path, _) in zip(waveforms, clips[:4], strict=False):
        audio = torch.from_numpy(load_audio(path))
        row[: len(audio)] = audio
        lengths.append(-(-len(audio) // 320))
    logmel = LogMel(FeatureConfig(normalisation="whisper", n_mels=N_MELS))
    with torch.no_grad():
        states, _ = teacher.encoder(logmel(waveforms, torch.full((5,), 480_000))[0])
    return SimpleNamespace(
        teacher=teacher, vocabulary=vocabulary, states=states[:4], silence=states[4], lengths=lengths
    )


class Parrot:
    """A student that says what it was given to say, and checks what it hears."""

    def __init__(self, said, offset, audio_states):
        self.said, self.offset, self.audio_states = list(said), offset, list(audio_states)

    def __call__(self, features, lengths, offset):
        assert torch.equal(offset, self.offset) and features.shape[2] == N_MELS
        assert (int(lengths) + 1) // 2 == self.audio_states.pop(0)
        return self.said.pop(0)[None], lengths


def test_scored_utterances_are_spread(heard, data, clips):
    lines = utterances(clips[:5])
    measure = TeacherWer(heard.teacher, str(data / "tokenizer.json"), lines, 2)
    assert measure.utterances == [lines[0], lines[2]]
    assert TeacherWer(heard.teacher, str(data / "tokenizer.json"), lines[:1], 9).utterances == lines[:1]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("what", ["padded", "speech"])
def test_wer_through_the_teacher(what, stride, heard, data, clips):
    """The texts to be found are what the teacher's decoder writes of such states: no errors, but for others."""
    means, offset = torch.randn(2, 1500, 64)
    said, expected = [], []
    for states, length in zip(heard.states, heard.lengths, strict=True):
        own = states if what == "padded" else torch.cat([states[:length], heard.silence[length:]])
        expected.append(own[::stride])
        said.append((states - means)[: 1500 if what == "padded" else length][::stride])
    texts = transcribe_states(heard.teacher, heard.vocabulary, torch.stack(expected), max_tokens=120)
    of_the_teacher = transcribe_states(heard.teacher, heard.vocabulary, heard.states, max_tokens=120)
    assert len(set(texts)) == 4 and all(texts) and (texts == of_the_teacher) == (what == "padded" and stride == 1)
    lines = [dataclasses.replace(u, text=text) for u, text in zip(utterances(clips[:4]), texts, strict=True)]
    measure = TeacherWer(heard.teacher, str(data / "tokenizer.json"), lines, 4)
    logmel = LogMel(FeatureConfig(n_mels=N_MELS))

    def student_and_teacher(said):
        return measure(Parrot(said, offset[::stride], heard.lengths), logmel, means, offset, stride)

    student, teacher = student_and_teacher(said)
    assert student == 0 and (teacher == 0) == (texts == of_the_teacher)
    assert student_and_teacher(said[::-1])[0] > 0
