"""The teacher's kept states as targets beside transcripts."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from distil_cases import D_MODEL, N_LAYERS, close, teacher_weights, utterances
from safetensors.torch import load_file

from samba_asr.audio.load import load_audio
from samba_asr.config import DecoderConfig, MixerConfig
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.encoder import Encoder
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training.callbacks import read_metrics
from samba_asr.training.config import DataConfig, EncoderTuningConfig, OptimiserConfig, TrainingConfig
from samba_asr.training.data import Example, collate
from samba_asr.training.manifest import write_manifest
from samba_asr.training.run import train
from samba_asr.training.whisper.decoder_teacher import whisper_norm
from samba_asr.training.whisper.distil import save_encoder
from samba_asr.training.whisper.matching import LiveMatching, StateMatching
from samba_asr.training.whisper.network import build_teacher, build_teacher_encoder
from samba_asr.training.whisper.student import copy_teacher, relative_error, student_config
from samba_asr.training.whisper.targets import MEANS_FILE, TRAIN_FOLDER, TeacherStates, Windows
from samba_asr.training.whisper.transcribe import teacher_features
from samba_asr.training.whisper.windows import pack_in_order


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory):
    """What distil.py leaves, without its training: the teacher has heard all windows but the last."""
    out = tmp_path_factory.mktemp("distil")
    known = utterances(clips)
    write_manifest(out / "train.jsonl", known)
    teacher = build_teacher(teacher_weights())
    states = TeacherStates(teacher, Windows(known, 3), out / TRAIN_FOLDER, bf16=False)
    assert len(states.windows) > 1
    states.position_means(len(states.windows) - 1)
    config = student_config(teacher, MixerConfig(expand=1, d_state=8, head_dim=32), "whisper4x")
    encoder = Encoder(config)
    copy_teacher(encoder, teacher)
    save_encoder(out / "encoder.safetensors", encoder, config)
    settings = {"train": [str(out / "train.jsonl")], "seed": 3, "subsampling": "whisper4x"}
    (out / "config.json").write_text(json.dumps(settings))
    return out, states, config


def batch_of(places, waveforms=None, token_counts=None):
    """A batch of these utterances of the training set."""
    waveforms = [torch.zeros(1)] * len(places) if waveforms is None else waveforms
    counts = [1] * len(places) if token_counts is None else token_counts
    examples = [Example(p, w, [5] * n) for p, w, n in zip(places, waveforms, counts, strict=True)]
    return collate(examples)


def paths(clips):
    return [str(path) for path, _ in clips]


def test_targets_are_every_second_state_without_the_mean_of_its_place(run, clips):
    out, states, _ = run
    matching = StateMatching(out, paths(clips))
    means = states.position_means(len(states.windows) - 1)
    heard = 0
    for number, window in enumerate(states.windows.placements):
        for utterance, start, end in window:
            if number + 1 == len(states.windows):
                assert matching.places[utterance] is None
                continue
            heard += 1
            expected = (states.states([number])[0] - means)[start:end:2]
            length = math.ceil(len(load_audio(clips[utterance][0])) / 640)
            assert abs(length - len(expected)) <= 1
            found = matching.targets(batch_of([utterance]), [0], torch.tensor([len(expected)])).states[0]
            close(found, expected, 1e-3)
    assert heard


def test_targets_are_stretched_to_the_utterance(run, clips):
    out, *_ = run
    matching = StateMatching(out, paths(clips))
    place = next(place for place, known in enumerate(matching.places) if known)
    _, start, end = matching.places[place]
    given = math.ceil((end - start) / 2)
    own = matching.targets(batch_of([place]), [0], torch.tensor([given])).states[0].numpy()
    slower = matching.targets(batch_of([place, place]), [0, 1], torch.tensor([given + 37, 5])).states
    assert not slower[1, 5:].any()
    for channel in (0, D_MODEL - 1):  # against numpy's interpolation
        expected = np.interp(np.linspace(0, given - 1, given + 37), np.arange(given), own[:, channel])
        np.testing.assert_allclose(slower[0, :, channel].numpy(), expected, atol=1e-4)


def test_the_error_is_that_of_known_utterances_under_the_run_s_norm(run, clips):
    out, *_ = run
    matching = StateMatching(out, ["unknown.wav", *paths(clips)])
    place = next(place for place, known in enumerate(matching.places) if known)
    torch.manual_seed(0)
    states, lengths = torch.randn(2, 60, D_MODEL), torch.tensor([60, 45])
    error, reading, _ = matching(states, lengths, batch_of([0, place]))
    assert reading is None
    target = matching.targets(batch_of([place]), [0], torch.tensor([45])).states[0].double()
    said = matching.norm(states[1, :45]).double()
    variance = (target - target.mean(0)).square().sum(0)
    squared = (said - target).square().sum(0)
    assert error.item() == pytest.approx(((squared.sum() / variance.sum() + (squared / variance).mean()) / 2).item())
    elsewhere = states.where(torch.tensor([False, True])[:, None, None], 9.0)
    assert torch.equal(error, matching(elsewhere, lengths, batch_of([0, place])).states)
    assert matching(states, lengths, batch_of([0, 0])) is None
    assert matching(states, lengths, batch_of([0, place], token_counts=[3, 0])) is None  # given up for noise
    assert all(not parameter.requires_grad for parameter in matching.parameters())


def test_runs_that_cannot_be_used(run, clips, tmp_path):
    out, *_ = run
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; is .* a run of distil\.py"):
        StateMatching(tmp_path, paths(clips))
    with pytest.raises(ValueError, match=r"has heard none of the training set's 1 utterances"):
        StateMatching(out, ["unknown.wav"])
    with pytest.raises(ValueError, match=r"encoder\.teacher_weight \(0\.0\) must be positive"):
        EncoderTuningConfig(teacher_weight=0.0)


def test_training_keeps_the_distilled_block_near_its_teacher(run, clips, tmp_path):
    """The same few steps with and without; new blocks stand on the distilled ones."""
    out, _, config = run
    write_manifest(tmp_path / "clips.jsonl", utterances(clips))
    Tokenizer.train([normalize_for_training(text) for _, text in clips], 48).save(tmp_path / "tokenizer.model")
    manifest = str(tmp_path / "clips.jsonl")
    data = DataConfig(manifest, manifest, str(tmp_path / "tokenizer.model"), 40.0, num_workers=0, dev_utterances=1)
    encoder = dataclasses.replace(config.encoder, n_layers=N_LAYERS + 1)
    decoder = DecoderConfig(n_layers=1, d_ff=32, mixer=config.encoder.mixer)
    base = TrainingConfig(
        data=dataclasses.replace(data, speed_factors=[1.0]),
        model=dataclasses.replace(config, encoder=encoder, decoder=decoder),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=2),
        max_steps=12,
        average_last=1,
        accelerator="cpu",
    )
    matching = StateMatching(out, paths(clips))
    places = [place for place, known in enumerate(matching.places) if known]

    def error(folder, **tuning):
        tuned = EncoderTuningConfig(weights=str(out / "encoder.safetensors"), new_blocks=1, **tuning)
        train(dataclasses.replace(base, encoder=tuned), tmp_path / folder)
        return matched(load_checkpoint(tmp_path / folder / "checkpoint")[0])

    def matched(model: SambaASR):
        waveforms = [torch.from_numpy(load_audio(clips[place][0])) for place in places]
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
        outputs: list[torch.Tensor] = []
        with torch.no_grad():
            _, lengths = model.encode_features(*model.features(padded, lengths), None, outputs)
            assert len(outputs) == N_LAYERS + 1
            return float(matching(outputs[-2], lengths, batch_of(places)).states)

    without, weak, strong = (
        error("without"),
        error("weak", teacher_run=str(out), teacher_weight=1e-6),
        error("strong", teacher_run=str(out), teacher_weight=10.0),
    )
    assert weak == pytest.approx(without, rel=0.05)
    assert strong < 0.9 * without
    rows = [row for row in read_metrics(tmp_path / "strong" / "metrics.csv") if "loss" in row]
    for row in rows:
        assert row["loss"] == pytest.approx(0.3 * row["ctc"] + 0.7 * row["decoder"] + 10.0 * row["teacher"], rel=1e-4)
    assert rows[-1]["teacher"] < rows[0]["teacher"]
    assert not any("teacher" in row for row in read_metrics(tmp_path / "without" / "metrics.csv"))


def clip_waveforms(clips):
    return [torch.from_numpy(load_audio(path)) for path, _ in clips]


def test_a_teacher_that_listens_along(run, clips):
    """Its targets are what it says of windows made by hand; two views have the same."""
    out, _, _ = run
    encoder = build_teacher_encoder(teacher_weights())
    matching = LiveMatching(out, encoder, 20.0)
    waveforms = clip_waveforms(clips)
    batch = batch_of(range(len(waveforms)), waveforms)
    lengths = torch.tensor([-(-len(waveform) // 640) for waveform in waveforms])
    assert matching.known(batch, lengths) == list(range(len(waveforms)))
    torch.manual_seed(5)
    found, at = matching.targets(batch, list(range(len(waveforms))), lengths)
    torch.manual_seed(5)
    places = pack_in_order([-(-len(waveform) // 320) for waveform in waveforms])
    means = torch.from_numpy(np.load(out / TRAIN_FOLDER / "means.npy"))
    windows = torch.zeros(places[-1][0] + 1, 480_000)
    for waveform, (window, start) in zip(waveforms, places, strict=True):
        windows[window, 320 * start :][: len(waveform)] = waveform
    features, _ = teacher_features(encoder)(windows, torch.full((len(windows),), 480_000))
    said = encoder(features)[0]
    for row, length, (window, start) in zip(found, lengths.tolist(), places, strict=True):
        within = torch.arange(start, start + 2 * length, 2).clamp_max(1499)
        close(row[:length], said[window, within] - means[within])
        assert not row[length:].any()
    for row, length, (_, start) in zip(at, lengths.tolist(), places, strict=True):
        assert torch.equal(row[:length], means[torch.arange(start, start + 2 * length, 2).clamp_max(1499)])
    states = torch.randn(2 * len(waveforms), found.shape[1], D_MODEL)
    torch.manual_seed(5)
    both = matching(states, lengths.repeat(2), batch)
    expected = relative_error(matching.norm(states), found.repeat(2, 1, 1), lengths.repeat(2))
    assert both.states.item() == pytest.approx(expected.item(), rel=1e-5)
    assert both.reading is None
    assert all(not parameter.requires_grad for parameter in matching.parameters())


def test_teachers_that_cannot_listen_along(run, tmp_path):
    out, *_ = run
    encoder = build_teacher_encoder(teacher_weights())
    with pytest.raises(
        ValueError, match=r"hears 30 s at once, and recordings may last 33\.3 s, slowed down: lower data"
    ):
        LiveMatching(out, encoder, 30 / 0.9)
    with pytest.raises(ValueError, match=r"encoder\.teacher has 128 channels, that of .* 64"):
        LiveMatching(out, build_teacher_encoder(teacher_weights(D_MODEL=128)), 20.0)
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        LiveMatching(tmp_path, encoder, 20.0)
    with pytest.raises(ValueError, match=r"encoder\.teacher \(tiny\.pt\) needs encoder\.teacher_run"):
        EncoderTuningConfig(teacher="tiny.pt")
    decoder_alone = {name: value for name, value in teacher_weights().items() if "conv1" not in name}
    with pytest.raises(ValueError, match=r"not the weights of a Whisper encoder: encoder\.conv1\.weight is missing"):
        build_teacher_encoder(decoder_alone)


def test_a_run_tells_what_makes_the_teachers_states(run):
    """For a decoder that hears a student's."""
    folder, _, _ = run
    teacher = build_teacher(teacher_weights())
    norm = whisper_norm(teacher, "whisper4x", str(folder))
    assert norm.stride == 2
    assert torch.equal(norm.layer.weight, load_file(folder / "encoder.safetensors")["norm.weight"].float())
    assert torch.equal(norm.means, torch.from_numpy(np.load(folder / TRAIN_FOLDER / MEANS_FILE)))
    plain = whisper_norm(teacher, "conv4x", None)
    assert plain.layer is teacher.encoder.ln_post and not plain.means.any()
    with pytest.raises(ValueError, match=r"its states \(64 channels, whisper4x\) must have .* rate \(whisper\)"):
        whisper_norm(teacher, "whisper", str(folder))
    with pytest.raises(FileNotFoundError, match=r"is .* a run of distil\.py"):
        whisper_norm(teacher, "whisper4x", str(folder / "none"))
