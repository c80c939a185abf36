"""recipes/whisper_to_samba/ablate.py: every row's command is one that distil.py and train.py understand."""

import csv
import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
from distil_cases import utterances
from safetensors import safe_open

from samba_asr.config import DecoderConfig, EncoderConfig, MixerConfig, ModelConfig
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import save_checkpoint
from samba_asr.text.normalization import normalize_text
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.cli import parse_arguments
from samba_asr.training.manifest import read_manifest, write_manifest
from samba_asr.training.whisper import cli as distil_cli
from samba_asr.training.whisper import distil as distil_module

PIECES = 60
NEED_MODEL = ("head", "joint", "decoder")
SCRIPT = Path(__file__).parent.parent / "recipes" / "whisper_to_samba" / "ablate.py"


@pytest.fixture(scope="module")
def ablate():
    spec = importlib.util.spec_from_file_location("ablate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablate"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ablate"]


@pytest.fixture(scope="module")
def arguments(ablate, clips, tmp_path_factory):
    """What every call needs, with manifests of a few recordings and a small model of conf/tiny.yaml's blocks."""
    root = tmp_path_factory.mktemp("ablate")
    for name in (*ablate.TRAINING, *ablate.DEV, ablate.SYNTHETIC):
        write_manifest(root / "prepared" / f"{name}.jsonl", utterances(clips))
    labelled = [dataclasses.replace(u, text=f"{u.text.capitalize()}.") for u in utterances(clips[1:])]
    for name in (*ablate.TRAINING, ablate.SYNTHETIC):
        write_manifest(root / "written" / f"{name}.jsonl", labelled)
    (root / "sentences.txt").write_text("the first sentence\nthe second one\n")
    made = ["--prepared", root / "prepared", "--teacher", "tiny.pt", "--teacher-tokenizer", "tiny.json"]
    made += ["--other-teacher", "base.pt", "--other-teacher-tokenizer", "base.json", "--noise", "noise"]
    mixer = MixerConfig(d_state=8, head_dim=16)
    encoder = EncoderConfig(n_layers=6, subsampling_channels=4, d_ff=32, mixer=mixer, ungrouped_layers=2)
    config = ModelConfig(PIECES, 32, encoder=encoder, decoder=DecoderConfig(n_layers=1, d_ff=32, mixer=mixer))
    tokenizer = Tokenizer.train([normalize_text(text, "spoken") for _, text in clips], PIECES)
    save_checkpoint(root / "model", SambaASR(config), tokenizer, "")
    made += ["--written", root / "written", "--model", root / "model"]
    return [*map(str, made), "--text", str(root / "sentences.txt"), "--minutes", "2", "--threads", "1"]


@pytest.fixture
def options(ablate, arguments, tmp_path, monkeypatch):
    chosen = ablate.build_parser().parse_args([*arguments, "--out", str(tmp_path)])
    monkeypatch.setattr(ablate, "tokenizer_file", lambda row, *_: Path(f"{row.text_form}-{row.vocab_size}.model"))
    return chosen


def names(rows):
    return [f"{row.group}: {row.name}" for row in rows]


def test_rows_have_names_of_their_own(ablate):
    assert len(set(names(ablate.ROWS))) == len(ablate.ROWS)


def test_every_distillation_is_understood_and_differs_from_the_first(ablate, options, monkeypatch):
    taken = []
    monkeypatch.setattr(distil_module, "distil", lambda config, out, resume: taken.append(config) or out)
    for row in [row for row in ablate.ROWS if row.group == "encoder"]:
        assert distil_cli.main([*ablate.distil_command(row, options)[1:], "--out", "run"]) == 0
    first, *others = taken
    assert (first.layer_minutes, first.encoder_minutes, first.subsampling) == pytest.approx((0.6, 1.4, "whisper4x"))
    assert first not in others and len({str(config) for config in taken}) == len(taken)


def test_every_training_run_is_understood_and_differs_from_the_others(ablate, options):
    rows = [row for row in ablate.ROWS if row.group != "encoder"]
    configs = [parse_arguments(ablate.command(row, Path("run"), options)[1:]).config for row in rows]
    assert len({str(config) for config in configs}) == len(rows)
    assert all(config.max_minutes == 2.0 for config in configs)
    for row, config in zip(rows, configs, strict=True):
        frozen, decoder = config.encoder.frozen_steps > 0, config.decoder_from_step == 0
        expected = {"head": (True, False), "joint": (False, row.name != "CTC weight 1"), "decoder": (True, True)}
        assert (frozen, decoder) == expected[row.group], row
        assert not set(config.data.train_manifests) & set(config.data.dev_manifests)
        assert {Path(name).parent.name for name in config.data.dev_manifests} == {"prepared"}
        folder = "written" if row.labelled else "prepared"
        assert {Path(name).parent.name for name in config.data.train_manifests} == {folder}


def test_written_text_differs_from_the_same_utterances_in_what_is_written_alone(ablate, options):
    spoken, written = (row for row in ablate.ROWS if row.labelled)
    settings = [
        parse_arguments([*ablate.train_command(row, options)[1:], "--out", "run"]).config.to_dict()
        for row in (spoken, written)
    ]
    data = [config.pop("data") for config in settings]
    assert settings[0] == settings[1]
    differ = {name: (data[0][name], data[1][name]) for name in data[0] if data[0][name] != data[1][name]}
    assert differ == {"text_form": ("spoken", "written"), "tokenizer": ("spoken-256.model", "written-256.model")}


def test_each_row_has_its_own_text_and_tokenizer(ablate, arguments, tmp_path):
    """That of the model where its size and form fit; another is trained on the transcripts that the row learns."""
    options = ablate.build_parser().parse_args([*arguments, "--out", str(tmp_path)])
    start = ablate.start_files(options)
    spoken, written = (dataclasses.replace(row, vocab_size=40) for row in ablate.ROWS if row.labelled)
    assert ablate.tokenizer_file(dataclasses.replace(spoken, vocab_size=PIECES), start, options) == (
        start / "model" / "tokenizer.model"
    )
    for row, folder in ((spoken, "prepared"), (written, "written")):
        row = dataclasses.replace(row, labelled=row is written)
        found = Tokenizer.load(ablate.tokenizer_file(row, start, options))
        transcripts = [
            normalize_text(utterance.text, row.text_form)
            for name in ablate.TRAINING
            for utterance in read_manifest(getattr(options, folder) / f"{name}.jsonl")
        ]
        assert found.model_proto == Tokenizer.train(transcripts, 40).model_proto, folder
    assert found.decode(found.encode("Simmer for a minute.")) == "Simmer for a minute."


def test_nats_of_written_text_are_not_told(ablate, arguments, tmp_path):
    """They would not compare: the development sets' transcripts have no case and no punctuation."""
    options = ablate.build_parser().parse_args([*arguments, "--out", str(tmp_path)])
    start = ablate.start_files(options)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").symlink_to(start / "model")
    (tmp_path / "run" / "metrics.csv").write_text("audio_hours,dev_wer,dev_ctc,dev_decoder\n1.0,0.5,1.5,2.5\n")
    spoken, written = (ablate.read_result(row, tmp_path / "run", options) for row in ablate.ROWS if row.labelled)
    assert spoken["dev_wer"] == written["dev_wer"] == "0.5"
    assert spoken["ctc_nats"] > 0 and "ctc_nats" not in written


def test_what_runs_start_from_is_the_model(ablate, options):
    start = ablate.start_files(options)
    lower = ablate.parameters(start / "lower.safetensors")
    whole, model = (ablate.parameters(start / name) for name in ("encoder.safetensors", "model/model.safetensors"))
    assert 0 < lower < whole < model
    assert model == ablate.parameters(Path(options.model) / "model.safetensors")
    with safe_open(start / "lower.safetensors", "pt") as file:
        blocks = {name.split(".")[1] for name in file.keys() if name.startswith("blocks.")}  # noqa: SIM118
    assert blocks == {"0", "1", "2", "3"}
    options.model = "samba-tiny-scratch"
    with pytest.raises(ValueError, match=r"start is not of --model .*samba-tiny-scratch: choose another --out"):
        ablate.start_files(options)


def test_a_failed_run_is_told_and_a_known_row_is_not_run_again(ablate, arguments, tmp_path, capsys):
    row = ["--groups", "encoder", "--rows", "as shipped", "--out", str(tmp_path)]
    assert ablate.main([*arguments, *row]) == 1
    assert "failed, see" in capsys.readouterr().err
    assert "tiny.pt does not exist" in (tmp_path / "encoder-as-shipped" / "log.txt").read_text()
    assert not (tmp_path / "results.csv").exists()
    ablate.add_result(tmp_path / "results.csv", {"group": "encoder", "row": "as shipped", "minutes": 2.0})
    assert ablate.main([*arguments, *row]) == 0
    assert len(list(csv.DictReader((tmp_path / "results.csv").open()))) == 1


def test_unknown_rows_and_a_missing_teacher_are_refused(ablate, arguments, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        ablate.main([*arguments, "--out", str(tmp_path), "--rows", "attention"])
    assert "--rows attention: there are as shipped, another seed" in capsys.readouterr().err
    for missing, rows, says in (
        ("--other-teacher", ["--rows", "teacher: base"], "needs --other-teacher and --other-teacher-tokenizer"),
        ("--other-teacher-tokenizer", ["--rows", "teacher: base"], "needs --other-teacher and"),
        ("--written", ["--rows", "as shipped, the same utterances"], "utterances' needs --written: the folder that"),
        ("--written", ["--rows", "written text (case and punctuation)"], "punctuation)' needs --written"),
        ("--text", ["--groups", "decoder"], "the decoder's rows need --text"),
        *(("--model", ["--groups", group], f"group {group} needs --model: a ch") for group in NEED_MODEL),
        ("--noise", ["--groups", "encoder", "--rows", "64 pieces"], "--groups encoder has none of --rows 64 pieces"),
    ):
        place = arguments.index(missing)
        with pytest.raises(SystemExit, match="2"):
            ablate.main([*arguments[:place], *arguments[place + 2 :], "--out", str(tmp_path), *rows])
        assert says in capsys.readouterr().err
