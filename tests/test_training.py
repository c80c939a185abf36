"""Training through the real code: overfitting real clips, resuming, averaging, stopping, skipping."""

import dataclasses
import itertools
import json
import math
import os
import pickle
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from samba_asr.audio.load import load_audio
from samba_asr.config import (
    CTCConfig,
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    MixerConfig,
    ModelConfig,
    SearchConfig,
    WordConfig,
)
from samba_asr.decoding.search import search_tokens
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint, save_checkpoint, save_config
from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import Tokenizer
from samba_asr.training import run as training_run
from samba_asr.training import start as training_start
from samba_asr.training.callbacks import list_checkpoints, read_metrics
from samba_asr.training.config import (
    DataConfig,
    EncoderTuningConfig,
    OptimiserConfig,
    SpecAugmentConfig,
    TextConfig,
    TrainingConfig,
)
from samba_asr.training.data import SpeechDataset, collate, read_manifests, select_utterances
from samba_asr.training.manifest import Utterance, write_manifest
from samba_asr.training.minimum_wer import find_choices, minimum_wer_loss
from samba_asr.training.module import DevScores, TrainingModule, parameter_groups
from samba_asr.training.run import set_global_statistics, spread, train
from samba_asr.training.schedule import learning_rate_share, run_progress
from samba_asr.transcriber import Transcriber


@pytest.fixture(scope="module")
def corpus(clips, tmp_path_factory):
    """A manifest of the four shortest clips and a tokenizer trained on their words."""
    folder = tmp_path_factory.mktemp("corpus")
    utterances = [Utterance(str(p), len(load_audio(p)) / 16_000, text, "reader", "clips") for p, text in clips]
    utterances = sorted(utterances, key=lambda utterance: utterance.duration)[:4]
    write_manifest(folder / "clips.jsonl", utterances)
    Tokenizer.train([normalize_for_training(u.text) for u in utterances], 48).save(folder / "tokenizer.model")
    return folder


def small_model(**features) -> ModelConfig:
    mixer = MixerConfig(d_state=16, head_dim=16)
    return ModelConfig(
        d_model=32,
        features=FeatureConfig(**features),
        encoder=EncoderConfig(n_layers=1, d_ff=32, subsampling_channels=4, dropout=0.1, drop_path=0.1, mixer=mixer),
        decoder=DecoderConfig(n_layers=1, d_ff=32, dropout=0.1, mixer=mixer),
    )


def settings(corpus, **changes) -> TrainingConfig:
    data = DataConfig(
        train=str(corpus / "clips.jsonl"),
        dev=[str(corpus / "clips.jsonl")],
        tokenizer=str(corpus / "tokenizer.model"),
        batch_seconds=9.0,
        max_duration=9.0,
        num_workers=0,
    )
    config = TrainingConfig(
        data=data,
        model=small_model(),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=5),
        max_steps=12,
        validate_every=5,
        checkpoint_every=4,
        average_last=3,
        accelerator="cpu",
    )
    return dataclasses.replace(config, **changes)


def weights_of(out):
    return load_checkpoint(out / "checkpoint")[0].state_dict()


def last_state(out):
    return torch.load(list_checkpoints(out / "checkpoints")[-1], weights_only=True)


@pytest.fixture(scope="module")
def whole_run(corpus, tmp_path_factory):
    """An uninterrupted run of 12 steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    scores = train(settings(corpus), out, command=["python", "train.py", "--some flag"])
    return out, scores


def test_a_run_leaves_its_files_and_a_checkpoint_that_loads(whole_run, corpus):
    out, scores = whole_run
    assert {path.name for path in out.iterdir()} == {
        "checkpoint",
        "checkpoints",
        "config.yaml",
        "curves.png",
        "metrics.csv",
        "versions.json",
    }
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == [
        "step=4.ckpt",
        "step=8.ckpt",
        "step=12.ckpt",
    ]
    config = yaml.safe_load((out / "config.yaml").read_text())
    expected = settings(corpus)
    vocab_size = Tokenizer.load(corpus / "tokenizer.model").vocab_size
    expected = dataclasses.replace(expected, model=dataclasses.replace(expected.model, vocab_size=vocab_size))
    assert config == expected.to_dict()
    versions = json.loads((out / "versions.json").read_text())
    assert versions["packages"]["torch"] == torch.__version__ and versions["command"] == "python train.py '--some flag'"
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    model, tokenizer = load_checkpoint(out / "checkpoint")
    assert tokenizer.model_proto == Tokenizer.load(corpus / "tokenizer.model").model_proto
    card = (out / "checkpoint" / "README.md").read_text()
    assert "python train.py '--some flag'" in card and "| clips | 4 |" in card and "Steps: 12 (max_steps (12)" in card
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters" in card
    assert f"loss {scores.loss:.3f}" in card and f"{100 * scores.wer:.2f} %" in card


def test_metrics_say_what_happened(whole_run):
    out, scores = whole_run
    rows = read_metrics(out / "metrics.csv")
    train_rows = [row for row in rows if "loss" in row]
    dev_rows = [row for row in rows if "dev_loss" in row]
    assert [row["step"] for row in train_rows] == [10, 12] and [row["step"] for row in dev_rows] == [5, 10, 12]
    assert rows[-1] is dev_rows[-1] and [row for row in rows if "exported" in row] == rows[-1:]
    assert rows[-1]["dev_loss"] == pytest.approx(scores.loss, rel=1e-5) and rows[-1]["position"] == 12
    assert rows[-1]["dev_wer"] == pytest.approx(scores.wer, rel=1e-5)
    row = train_rows[0]
    assert row["position"] == 10 and row["skipped"] == 0 and row["audio_seconds_per_second"] > 0
    assert row["loss"] == pytest.approx(0.3 * row["ctc"] + 0.7 * row["decoder"], rel=1e-4)
    share = learning_rate_share(9, 9 / 12, warmup_steps=5, final_share=0.02)
    assert row["lr"] == pytest.approx(3e-3 * share, rel=1e-5)
    share = learning_rate_share(11, 11 / 12, warmup_steps=5, final_share=0.02)
    assert train_rows[1]["lr"] == pytest.approx(3e-3 * share, rel=1e-5) and train_rows[1]["loss"] != row["loss"]
    groups = last_state(out)["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [3e-3 * share] * 6
    assert [group["weight_decay"] for group in groups] == [0.01] * 3 + [0.0] * 3
    assert all(0 <= row["dev_wer"] < 5 for row in dev_rows)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_equals_an_uninterrupted_one(whole_run, corpus, tmp_path, workers, monkeypatch):
    config = settings(corpus)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=workers))
    out = tmp_path / "run"
    steps = 0
    step = TrainingModule.training_step

    def step_and_signal(self, batch, batch_index):
        nonlocal steps
        steps += 1
        if steps == 7:  # not a multiple of anything
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_index)

    monkeypatch.setattr(TrainingModule, "training_step", step_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    train(config, out)
    assert signal.getsignal(signal.SIGTERM) == before
    assert steps == 7 and [p.name for p in list_checkpoints(out / "checkpoints")] == ["step=4.ckpt", "step=7.ckpt"]
    assert "SIGTERM" in (out / "checkpoint" / "README.md").read_text()
    if workers == 0:  # as if the process had died before it could save its last step
        (out / "checkpoints" / "step=7.ckpt").unlink()
    train(config, out, resume=True)
    assert steps == (15 if workers == 0 else 12)
    whole, _ = whole_run
    expected, found = last_state(whole), last_state(out)
    assert found["global_step"] == 12 and found["progress"]["position"] == 12
    assert found["progress"]["audio_seconds"] == expected["progress"]["audio_seconds"]
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    for key, moments in expected["optimizer_states"][0]["state"].items():
        for name, value in moments.items():
            assert torch.equal(found["optimizer_states"][0]["state"][key][name], value)
    assert dev_rows(out) == dev_rows(whole)


def dev_rows(out):
    """Steps and losses of the regular validations (Lightning adds one where a run is stopped)."""
    rows = read_metrics(out / "metrics.csv")
    return [(row["step"], row["dev_loss"]) for row in rows if "dev_loss" in row and row["step"] % 5 == 0]


def test_mixed_precision_keeps_the_weights_in_float32(whole_run, corpus, tmp_path):
    train(settings(corpus, precision="bf16"), tmp_path / "run")
    found, expected = read_metrics(tmp_path / "run" / "metrics.csv"), read_metrics(whole_run[0] / "metrics.csv")
    losses = [next(row["loss"] for row in rows if "loss" in row) for rows in (found, expected)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(value.dtype == torch.float32 for value in weights_of(tmp_path / "run").values())


def test_features_are_masked_in_training_alone(corpus):
    config = settings(corpus, model=dataclasses.replace(small_model(), vocab_size=48))
    model = SambaASR(config.model)
    selection = selected(config)
    module = TrainingModule(config, model, Tokenizer.load(config.data.tokenizer), selection.utterances)
    seen = []
    encode = model.encode_features
    model.encode_features = lambda features, *rest: seen.append(features) or encode(features, *rest)
    batch = collate([SpeechDataset(selection, 16_000)[0, 0]])
    module.losses(batch)
    module.validation_step(batch, 0)
    plain, _ = model.features(batch.waveforms, batch.waveform_lengths)
    assert torch.equal(seen[1], plain)
    changed = (seen[0] != plain).float().mean()
    assert 0.05 < changed < 0.95 and seen[0].shape == plain.shape


def test_two_views_are_masked_apart_and_drawn_together(corpus):
    """Without masks both views say the same: CTC's loss is that of one view, and they agree; with masks they do not,
    and the weight of the consistency reaches the gradient."""
    model = dataclasses.replace(small_model(), vocab_size=48)
    unmasked = SpecAugmentConfig(n_time_masks=0, n_freq_masks=0)

    def module(**changes):
        torch.manual_seed(1)
        config = settings(corpus, model=model, ctc_weight=1.0, **changes)
        selection = selected(config)
        module = TrainingModule(config, SambaASR(model), Tokenizer.load(config.data.tokenizer), selection.utterances)
        module.eval()  # no dropout
        return module, collate([SpeechDataset(selection, 16_000)[0, index] for index in range(3)])

    (one, batch), (two, _) = module(spec_augment=unmasked), module(spec_augment=unmasked, consistency_weight=0.2)
    assert one.losses(batch).consistency is None
    same = two.losses(batch)
    assert same.consistency.item() == pytest.approx(0, abs=1e-6)
    assert same.recordings.ctc.item() == pytest.approx(one.losses(batch).recordings.ctc.item(), rel=1e-5)

    masked, _ = module(consistency_weight=0.2)
    seen = []
    encode = masked.model.encode_features
    masked.model.encode_features = lambda features, *rest: seen.append(features) or encode(features, *rest)
    loss = masked.losses(batch).consistency
    first, second = seen[0].chunk(2)
    assert not torch.equal(first, second) and loss > 1e-4
    loss.backward()
    assert masked.model.encoder.blocks[0].norm.weight.grad.abs().sum() > 0


def test_expected_errors_are_lowered_beside_the_rest(corpus, tmp_path):
    """From the decoder's first step on; the metrics tell them, and the decoder learns from them."""
    model = dataclasses.replace(small_model(), vocab_size=48)

    def module(**changes):
        torch.manual_seed(1)
        config = settings(corpus, model=model, **changes)
        selection = selected(config)
        tokenizer = Tokenizer.load(config.data.tokenizer)
        batch = collate([SpeechDataset(selection, 16_000)[0, index] for index in range(3)])
        return TrainingModule(config, SambaASR(model), tokenizer, selection.utterances), batch

    plain, batch = module()
    assert plain.losses(batch).minimum_wer is None
    later, _ = module(minimum_wer_weight=1.0, decoder_from_step=3)
    assert later.losses(batch).minimum_wer is None
    asked, _ = module(minimum_wer_weight=1.0, minimum_wer_texts=6, consistency_weight=0.2)
    asked.eval()  # no dropout
    states = []
    encode = asked.model.encode_features
    asked.model.encode_features = lambda *given: states.append(encode(*given)) or states[-1]
    loss = asked.losses(batch).minimum_wer
    first, lengths = (tensor[:3] for tensor in states[0])  # of the two views
    rows = zip(batch.tokens.tolist(), batch.token_lengths.tolist(), strict=True)
    said = [asked.tokenizer.decode(row[:length]) for row, length in rows]
    choices = find_choices(asked.model, asked.tokenizer, first.detach(), lengths, said, 6)
    by_itself = minimum_wer_loss(asked.model, first, lengths, choices, sum(len(text.split()) for text in said))
    assert loss.item() == pytest.approx(by_itself.item(), rel=1e-5)
    assert 0 < loss.item() < 50
    loss.backward()
    assert asked.model.decoder.out_proj.weight.grad.abs().sum() > 0
    assert asked.model.ctc_head.weight.grad is None

    train(settings(corpus, minimum_wer_weight=1.0), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert any(row.get("minimum_wer", 0) > 0 for row in rows)


def tuned(corpus, **changes):
    config = settings(corpus, model=dataclasses.replace(small_model(), vocab_size=48))
    return dataclasses.replace(config, encoder=EncoderTuningConfig(**changes))


def test_a_frozen_encoder_learns_later_and_less(corpus, tmp_path):
    weights = tmp_path / "encoder.safetensors"
    torch.manual_seed(5)
    start = SambaASR(tuned(corpus).model).encoder
    save_file({name: value.contiguous() for name, value in start.state_dict().items()}, weights)

    def moved(folder, **changes):
        train(tuned(corpus, weights=str(weights), **changes), tmp_path / folder)
        after = load_checkpoint(tmp_path / folder / "checkpoint")[0]
        pairs = zip(start.parameters(), after.encoder.parameters(), strict=True)
        return max(float((new - old).detach().abs().max()) for old, new in pairs), after

    still, frozen = moved("frozen", frozen_steps=1_000)
    assert still == 0
    assert not torch.equal(frozen.ctc_head.bias, torch.zeros_like(frozen.ctc_head.bias))
    full, _ = moved("full")
    little, _ = moved("little", learning_rate_share=0.1)
    assert 0 < little < 0.5 * full


def test_new_blocks_pass_states_on_at_first_and_learn_while_the_others_are_frozen(corpus, tmp_path):
    torch.manual_seed(5)
    start = SambaASR(tuned(corpus).model).eval()
    weights = tmp_path / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in start.encoder.state_dict().items()}, weights)
    model = dataclasses.replace(start.config, encoder=dataclasses.replace(start.config.encoder, n_layers=3))
    tuning = EncoderTuningConfig(weights=str(weights), new_blocks=2, frozen_steps=1_000)
    config = dataclasses.replace(tuned(corpus), model=model, encoder=tuning)
    grown = SambaASR(model).eval()
    training_start.load_encoder(grown, config)
    assert len(grown.encoder.blocks) == 3
    waveforms, lengths = torch.randn(2, 16_000), torch.tensor([16_000, 9_000])
    assert torch.equal(grown.encode(waveforms, lengths)[0], start.encode(waveforms, lengths)[0])

    train(config, tmp_path / "run")
    after = load_checkpoint(tmp_path / "run" / "checkpoint")[0].encoder.state_dict()
    for name, value in start.encoder.state_dict().items():
        assert torch.equal(after[name], value), name
    assert all(after[f"blocks.{i}.mixer.{d}.out_proj.weight"].any() for i in (1, 2) for d in ("forwards", "backwards"))


def test_a_distilled_norm_is_left_out_where_ctc_has_blocks_of_its_own(corpus, tmp_path):
    """They have a norm, and so has the decoder; the encoder ends without one."""
    config = tuned(corpus)
    torch.manual_seed(5)
    distilled = SambaASR(config.model).encoder.state_dict()
    weights = tmp_path / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in distilled.items()}, weights)
    owning = dataclasses.replace(config.model, ctc=CTCConfig(n_layers=1))
    config = dataclasses.replace(config, model=owning, encoder=EncoderTuningConfig(weights=str(weights)))
    model = SambaASR(owning)
    others = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    training_start.load_encoder(model, config)
    own = {name: value for name, value in distilled.items() if not name.startswith("norm.")}
    assert len(own) == len(distilled) - 2
    after = model.state_dict()
    assert after.keys() == others.keys() | {f"encoder.{name}" for name in own}
    for name, value in after.items():
        assert torch.equal(value, others[name] if name in others else own[name.removeprefix("encoder.")]), name
    with pytest.raises(ValueError, match=r"(?s)does not fit the configured encoder: .*blocks\.0\."):
        save_file({"norm.bias": distilled["norm.bias"]}, weights)
        training_start.load_encoder(SambaASR(owning), config)


def test_weights_and_a_checkpoint_are_mixed(corpus, tmp_path):
    config = tuned(corpus)
    model = dataclasses.replace(config.model, encoder=dataclasses.replace(config.model.encoder, n_layers=2))
    torch.manual_seed(5)
    distilled, before = SambaASR(config.model).encoder, SambaASR(model)
    weights = tmp_path / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in distilled.state_dict().items()}, weights)
    save_checkpoint(tmp_path / "before", before, Tokenizer.load(config.data.tokenizer), "")
    tuning = EncoderTuningConfig(weights=str(weights), weights_share=0.25, new_blocks=1)
    config = dataclasses.replace(config, model=model, encoder=tuning, init_from=str(tmp_path / "before"))
    mixed = SambaASR(model)
    mixed.load_state_dict(before.state_dict())
    training_start.load_encoder(mixed, config)
    for name, value in mixed.state_dict().items():
        old, other = before.state_dict()[name], distilled.state_dict().get(name.removeprefix("encoder."))
        kept = other is None or name.startswith("encoder.norm.") or not name.startswith("encoder.")
        torch.testing.assert_close(value, old if kept else 0.25 * other + 0.75 * old, msg=name)
    with pytest.raises(ValueError, match=r"weights_share \(0.25\) needs encoder.weights and init_from"):
        dataclasses.replace(config, init_from=None)
    with pytest.raises(ValueError, match=r"weights_share \(0\)"):
        EncoderTuningConfig(weights_share=0)


def test_a_distilled_encoder_of_other_mixers_takes_the_place_of_a_checkpoint_s(corpus, tmp_path):
    config = tuned(corpus)
    mixer = dataclasses.replace(config.model.encoder.mixer, groups=0)
    shipped = dataclasses.replace(config.model, encoder=dataclasses.replace(config.model.encoder, n_layers=2))
    encoder = dataclasses.replace(shipped.encoder, mixer=mixer, ungrouped_layers=1)
    grouped = dataclasses.replace(shipped, encoder=encoder)
    assert [block.mixer.forwards.groups > 1 for block in SambaASR(grouped).encoder.blocks] == [True, False]
    torch.manual_seed(5)
    before, distilled = SambaASR(shipped), SambaASR(grouped).encoder
    weights = {name: value for name, value in distilled.state_dict().items() if not name.startswith("blocks.1.")}
    save_file(weights, tmp_path / "encoder.safetensors")
    tokenizer = Tokenizer.load(config.data.tokenizer)
    save_checkpoint(tmp_path / "before", before, tokenizer, "")
    tuning = EncoderTuningConfig(weights=str(tmp_path / "encoder.safetensors"), new_blocks=1)
    config = dataclasses.replace(config, model=grouped, encoder=tuning, init_from=str(tmp_path / "before"))
    model = SambaASR(grouped)
    training_start.load_initial(model, config.init_from, config, tokenizer)
    training_start.load_encoder(model, config)
    for name, value in model.state_dict().items():
        of_encoder = name.startswith(("encoder.subsampling.", "encoder.blocks.0."))
        source = weights[name.removeprefix("encoder.")] if of_encoder else before.state_dict()[name]
        assert torch.equal(value, source), name
    alone = dataclasses.replace(config, encoder=EncoderTuningConfig())
    with pytest.raises(ValueError, match=r"model.encoder.mixer.groups was 1 and is now 0; .*ungrouped_layers was 0"):
        training_start.load_initial(model, config.init_from, alone, tokenizer)


@pytest.mark.parametrize("copied_share", [1.0, 0.3, 0.0])
def test_new_blocks_learn_at_the_full_rate_and_a_thawed_encoder_warms_up(corpus, monkeypatch, copied_share):
    model = tuned(corpus).model
    model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, n_layers=2))
    tuning = EncoderTuningConfig(new_blocks=1, learning_rate_share=0.1, frozen_steps=20, copied_share=copied_share)
    config = dataclasses.replace(tuned(corpus), model=model, encoder=tuning)
    module = TrainingModule(config, SambaASR(config.model), Tokenizer.load(config.data.tokenizer), [])
    optimizer = module.configure_optimizers()
    carried = {n for n, _ in module.model.named_parameters() if n.startswith("encoder.") and "blocks.1." not in n}
    mixer = {name for name in carried if "blocks.0.mixer." in name}
    assert mixer and carried - mixer
    # 5 steps of warm-up, after the thaw in step 20 too
    for step, share in ((19, 0.0), (20, 0.02), (22, 0.06), (24, 0.1), (30, 0.1)):
        monkeypatch.setattr(TrainingModule, "global_step", step)
        full = module._set_learning_rate(optimizer)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in module.model.named_parameters():
            own = 1.0 if name in mixer else copied_share
            expected = full * share * own if name in carried else full
            assert rates.pop(id(parameter)) == pytest.approx(expected), (step, name)
        assert not rates


def test_parts_that_begin_later_do_begin_also_when_resumed(corpus, tmp_path):
    """Frozen until step 2, no decoder until step 4; what came after step 3 is lost."""
    tuning = {"max_steps": 6, "checkpoint_every": 1, "average_last": 6, "decoder_from_step": 4}
    config = dataclasses.replace(tuned(corpus, frozen_steps=2), **tuning)
    train(config, tmp_path / "whole")
    states = [
        torch.load(path, weights_only=True)["state_dict"] for path in list_checkpoints(tmp_path / "whole/checkpoints")
    ]
    assert len(states) == 6

    def steps_that_moved(prefix):
        pairs = enumerate(itertools.pairwise(states), 2)
        return [n for n, (a, b) in pairs if any(not torch.equal(a[k], b[k]) for k in a if k.startswith(prefix))]

    assert steps_that_moved("model.ctc_head") == [2, 3, 4, 5, 6]
    assert steps_that_moved("model.encoder") == [3, 4, 5, 6]
    assert steps_that_moved("model.decoder") == [5, 6]

    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for path in list_checkpoints(tmp_path / "parts/checkpoints")[3:]:
        path.unlink()
    train(config, tmp_path / "parts", resume=True)
    ours = last_state(tmp_path / "parts")["state_dict"]
    assert all(torch.equal(ours[name], value) for name, value in states[-1].items())


def test_a_run_that_ends_before_its_decoder_begins_searches_without_it(corpus, tmp_path, caplog):
    model = dataclasses.replace(small_model(), search=SearchConfig(search="rescoring", beam_size=3))
    for name, step, search in (("before", 2, "ctc"), ("after", 1, "rescoring")):
        train(settings(corpus, model=model, max_steps=2, average_last=1, decoder_from_step=step), tmp_path / name)
        found = load_checkpoint(tmp_path / name / "checkpoint")[0].config.search
        assert (found.search, found.beam_size) == (search, 3)
    assert caplog.text.count("its search is ctc") == 1


def test_the_decoder_may_begin_later(corpus, tmp_path):
    (tmp_path / "text.txt").write_text("not one of them said this")
    text = TextConfig(files=[str(tmp_path / "text.txt")])
    config = settings(corpus, max_steps=4, average_last=1, checkpoint_every=2, decoder_from_step=1_000, text=text)
    train(config, tmp_path / "run")
    after = last_state(tmp_path / "run")["state_dict"]
    torch.manual_seed(config.seed)
    before = SambaASR(dataclasses.replace(config.model, vocab_size=48)).state_dict()
    moved = {name for name, value in before.items() if not torch.equal(after[f"model.{name}"], value)}
    assert any(name.startswith("encoder.") for name in moved) and "ctc_head.weight" in moved
    assert not any(name.startswith("decoder.") for name in moved)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["decoder"] for row in rows if "decoder" in row] == [0.0]
    assert rows[-1]["dev_decoder"] > 1


def test_chunks_are_drawn_from_their_range(corpus):
    config = tuned(corpus, chunk_share=0.5, chunk_states=(3, 5))
    model = SambaASR(config.model)
    selection = selected(config)
    module = TrainingModule(config, model, Tokenizer.load(config.data.tokenizer), selection.utterances)
    seen = []
    encode = model.encode_features
    model.encode_features = lambda *arguments: seen.append(arguments[2]) or encode(*arguments)
    batch = collate([SpeechDataset(selection, 16_000)[0, 0]])
    for seed in range(40):
        torch.manual_seed(seed)
        module.losses(batch)
    assert set(seen) == {None, 3, 4, 5}
    assert 10 < seen.count(None) < 30


def test_text_reaches_the_decoder_but_not_its_own_development_set(corpus, tmp_path, caplog):
    said = [u.text for u in read_manifests([str(corpus / "clips.jsonl")])]
    (tmp_path / "text.txt").write_text("\n".join([*said, "not one of them said this", "nor did they say that"]))
    text = TextConfig(files=[str(tmp_path / "text.txt")], tokens=50, weight=0.5)
    with caplog.at_level("INFO"):
        train(settings(corpus, max_steps=2, average_last=1, text=text), tmp_path / "with")
    assert "text: 2 sentences" in caplog.text
    train(settings(corpus, max_steps=2, average_last=1), tmp_path / "without")
    with_text, without = weights_of(tmp_path / "with"), weights_of(tmp_path / "without")
    assert not torch.equal(with_text["decoder.out_proj.weight"], without["decoder.out_proj.weight"])
    (row,) = (row for row in read_metrics(tmp_path / "with" / "metrics.csv") if "loss" in row)
    assert row["loss"] == pytest.approx(0.3 * row["ctc"] + 0.7 * row["decoder"] + 0.5 * row["text"], rel=1e-4)


def test_encoder_weights_that_do_not_fit(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"encoder\.weights.*distil\.py"):
        train(tuned(corpus, weights=str(tmp_path / "none.safetensors")), tmp_path / "run")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.weights.*does not fit"):
        train(tuned(corpus, weights=str(tmp_path / "other.safetensors")), tmp_path / "run2")


def test_the_seed_matters_and_old_checkpoints_go(whole_run, corpus, tmp_path):
    train(settings(corpus, seed=1, average_last=1), tmp_path / "run")
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step=12.ckpt"]
    assert "Weights: step 12.\n" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    other = last_state(tmp_path / "run")["state_dict"]
    assert any(not torch.equal(other[name], value) for name, value in last_state(whole_run[0])["state_dict"].items())


def test_a_used_folder_needs_resume(whole_run, corpus, tmp_path):
    with pytest.raises(ValueError, match=r"is not empty.*--resume true"):
        train(settings(corpus), whole_run[0])
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        train(settings(corpus), tmp_path / "file")


@pytest.fixture
def used_run(whole_run, tmp_path):
    """A copy of the run, and a function that says whether any of its files has changed."""
    out = tmp_path / "run"
    shutil.copytree(whole_run[0], out)

    def contents():
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    before = contents()
    return out, lambda: contents() == before


def test_a_run_resumes_with_its_own_tokenizer_alone(used_run, corpus, tmp_path):
    out, unchanged = used_run
    texts = [normalize_for_training(u.text) for u in read_manifests([str(corpus / "clips.jsonl")])]
    other = Tokenizer.train(texts, 48, "bpe")
    other.save(tmp_path / "other.model")
    data = dataclasses.replace(settings(corpus).data, tokenizer=str(tmp_path / "other.model"))
    with pytest.raises(ValueError, match=r"other\.model\) is another tokenizer than that of .*step=12\.ckpt: resume"):
        train(settings(corpus, data=data, max_steps=14), out, resume=True)
    assert unchanged()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 64}, r"model\.d_model was 32 and is now 64; resume with the run's own settings"),
        ({"features": FeatureConfig(log_floor=-6.0)}, r"model\.features\.log_floor was -7\.0 and is now -6\.0;"),
        (
            {"decoder": dataclasses.replace(small_model().decoder, mixer=MixerConfig(d_state=8, head_dim=16))},
            r"step=12\.ckpt is of another model: ",
        ),
    ],
)
def test_a_run_resumes_with_its_own_model_alone(used_run, corpus, changes, message):
    out, unchanged = used_run
    model = dataclasses.replace(small_model(), **changes)
    with pytest.raises(ValueError, match=message):
        train(settings(corpus, model=model, max_steps=14), out, resume=True)
    assert unchanged()


def test_a_run_from_before_a_setting_existed_resumes(used_run, corpus):
    out, _ = used_run
    last = list_checkpoints(out / "checkpoints")[-1]
    state = torch.load(last, weights_only=True)
    del state["hyper_parameters"]["training"]["model"]["encoder"]["shared_projections"]
    del state["hyper_parameters"]["training"]["data"]["text_form"]
    torch.save(state, last)
    train(settings(corpus, max_steps=13), out, resume=True)
    assert list_checkpoints(out / "checkpoints")[-1].name == "step=13.ckpt"
    encoder = dataclasses.replace(small_model().encoder, shared_projections=True)
    changed = dataclasses.replace(small_model(), encoder=encoder)
    with pytest.raises(ValueError, match=r"encoder\.shared_projections was False and is now True"):
        train(settings(corpus, model=changed, max_steps=14), out, resume=True)


def test_a_resumed_run_keeps_its_groups_of_learning_rates(used_run, corpus):
    out, unchanged = used_run
    shared = settings(corpus, encoder=EncoderTuningConfig(copied_share=0.5), max_steps=14)
    with pytest.raises(ValueError, match=r"encoder\.copied_share \(0\.5\) was 1\.0 in .*step=12\.ckpt: a run that"):
        train(shared, out, resume=True)
    assert unchanged()


def test_a_share_of_the_learning_rate_may_change_within_a_run(corpus, tmp_path):
    def shared(share, steps):
        return settings(corpus, encoder=EncoderTuningConfig(copied_share=share), max_steps=steps)

    train(shared(0.5, 2), tmp_path)
    train(shared(0.25, 3), tmp_path, resume=True)
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == "step=3.ckpt"
    with pytest.raises(ValueError, match=r"encoder\.copied_share \(1\.0\) was 0\.25 in .*step=3\.ckpt: a run that"):
        train(shared(1.0, 4), tmp_path, resume=True)


def test_a_resumed_run_keeps_its_new_blocks(corpus, tmp_path):
    model = dataclasses.replace(small_model(), encoder=dataclasses.replace(small_model().encoder, n_layers=2))

    def with_new(new_blocks, steps):
        return settings(corpus, model=model, encoder=EncoderTuningConfig(new_blocks=new_blocks), max_steps=steps)

    train(with_new(1, 2), tmp_path)
    with pytest.raises(ValueError, match=r"encoder\.new_blocks \(0\) was 1 in .*step=2\.ckpt: resume with that"):
        train(with_new(0, 3), tmp_path, resume=True)
    train(with_new(1, 3), tmp_path, resume=True)
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == "step=3.ckpt"


def test_dropout_may_change_within_a_run(used_run, corpus):
    out, _ = used_run
    calmer = dataclasses.replace(small_model(), decoder=dataclasses.replace(small_model().decoder, dropout=0.0))
    train(settings(corpus, model=calmer, max_steps=13), out, resume=True)
    rows = read_metrics(out / "metrics.csv")
    assert [row["step"] for row in rows if "loss" in row] == [10, 12, 13]
    assert [(row["step"], row.get("exported")) for row in rows if "dev_loss" in row] == [(5, None), (10, None), (13, 1)]
    assert list_checkpoints(out / "checkpoints")[-1].name == "step=13.ckpt"


class Evil:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other", "evil archive", "evil pickle"])
def test_a_damaged_checkpoint_is_named_and_never_run(used_run, corpus, tmp_path, damage):
    out, _ = used_run
    newest = out / "checkpoints" / "step=12.ckpt"
    evil = Evil(tmp_path / "made")
    if damage == "other":
        torch.save({"state_dict": {}}, newest)
    elif damage == "evil archive":
        torch.save({**torch.load(newest, weights_only=True), "more": evil}, newest)
    elif damage == "evil pickle":
        newest.write_bytes(pickle.dumps(evil))
    else:
        whole = newest.read_bytes()
        newest.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"words\n"}[damage])
    config = (out / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"step=12\.ckpt is damaged.*: delete it and resume from the one before$"):
        train(settings(corpus, max_steps=14), out, resume=True)
    assert not (tmp_path / "made").exists() and (out / "config.yaml").read_bytes() == config


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_accelerator_that_is_not_there(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"accelerator \(gpu\) cannot be used here; take auto or cpu"):
        train(settings(corpus, accelerator="gpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_average_is_exported_only_if_it_is_not_worse(whole_run, corpus, monkeypatch):
    out, _ = whole_run
    checkpoints = list_checkpoints(out / "checkpoints")
    tokenizer = Tokenizer.load(corpus / "tokenizer.model")
    config = settings(corpus)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    selection = selected(config)
    module = TrainingModule(config, SambaASR(config.model), tokenizer, selection.utterances)
    states = [torch.load(path, weights_only=True)["state_dict"] for path in checkpoints]
    name = "model.ctc_head.weight"
    mean = np.mean([state[name].double().numpy() for state in states], axis=0).astype(np.float32)
    scores = training_run._validate(config, module, selection)
    for average_loss, chosen in (
        (1.0, mean),
        (2.0, mean),
        (2.5, states[-1][name].numpy()),
        (math.nan, states[-1][name]),
    ):
        losses = iter([2.0, average_loss])
        monkeypatch.setattr(
            training_run, "_validate", lambda *_, losses=losses: dataclasses.replace(scores, loss=next(losses))
        )
        what, found = training_run.choose_weights(config, module, selection, checkpoints)
        np.testing.assert_array_equal(module.model.ctc_head.weight.detach().numpy(), chosen)
        if average_loss <= 2.0:
            assert what.startswith("the average of steps 4, 8, 12") and found.loss == average_loss
        else:
            assert what.startswith("step 12 (") and found.loss == 2.0


def test_tied_embeddings_are_averaged_too(corpus, tmp_path):
    """They have two names; the last checkpoint's must not come over their average."""
    config = settings(corpus, max_steps=2, checkpoint_every=1, average_last=2)
    decoder = dataclasses.replace(config.model.decoder, tied_embedding=True)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    train(config, tmp_path / "run")
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert len(checkpoints) == 2
    states = [torch.load(path, weights_only=True) for path in checkpoints]
    for state in states:
        state["state_dict"]["model.decoder.embedding.weight"] += torch.randn(())  # both names share it
    for path, state in zip(checkpoints, states, strict=True):
        torch.save(state, path)
    found = weights_averaged(config, corpus, checkpoints)
    expected = sum(state["state_dict"]["model.decoder.embedding.weight"] for state in states) / 2
    torch.testing.assert_close(found.decoder.embedding.weight.detach(), expected)


def weights_averaged(config, corpus, checkpoints):
    """Return the model with the average of checkpoints, whatever their scores."""
    tokenizer = Tokenizer.load(corpus / "tokenizer.model")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    selection = selected(config)
    module = TrainingModule(config, SambaASR(config.model), tokenizer, selection.utterances)
    scores = iter([DevScores(2.0, 0.0, 0.0, None), DevScores(1.0, 0.0, 0.0, None)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "_validate", lambda *_: next(scores))
        training_run.choose_weights(config, module, selection, checkpoints)
    return module.model


def test_what_was_exported_has_the_dev_loss_that_was_reported(whole_run, corpus):
    out, scores = whole_run
    model, tokenizer = load_checkpoint(out / "checkpoint")
    config = dataclasses.replace(settings(corpus), model=model.config)
    selection = selected(config)
    module = TrainingModule(config, model, tokenizer, selection.utterances)
    assert training_run._validate(config, module, selection).loss == pytest.approx(scores.loss, rel=1e-6)


def selected(config):
    tokenizer = Tokenizer.load(config.data.tokenizer)
    utterances = read_manifests(config.data.train_manifests)
    return select_utterances(utterances, tokenizer, config.model, min_duration=0.3, max_duration=9.0)


def test_time_ends_a_run_and_the_cosine(corpus, tmp_path, monkeypatch):
    clock = itertools.count(0.0, 15.0)  # a quarter of a minute at each look
    monkeypatch.setattr("samba_asr.training.module.time", SimpleNamespace(monotonic=lambda: next(clock)))
    config = settings(corpus, max_minutes=2.0, max_steps=1000)
    train(config, tmp_path / "run")
    state = last_state(tmp_path / "run")
    assert state["progress"]["minutes"] == 2.0 and state["global_step"] == 8
    assert "max_minutes (2.0) reached" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    share = learning_rate_share(7, 1.75 / 2, warmup_steps=5, final_share=0.02)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(3e-3 * share)
    train(dataclasses.replace(config, max_minutes=3.0), tmp_path / "run", resume=True)
    state = last_state(tmp_path / "run")
    assert state["progress"]["minutes"] == 3.0 and state["global_step"] == 12


def test_steps_that_are_not_finite_are_skipped(corpus, tmp_path, monkeypatch, caplog):
    clean = TrainingModule.losses

    def losses(self, batch):
        found = clean(self, batch)
        damage = {2: lambda x: x + torch.nan, 5: lambda x: x * torch.inf, 6: lambda x: x * torch.nan}
        total = damage.get(self.progress.position, lambda x: x)(found.recordings.total)
        return found._replace(recordings=found.recordings._replace(total=total))

    monkeypatch.setattr("samba_asr.training.module.MAX_SKIPPED_IN_A_ROW", 3)
    monkeypatch.setattr(TrainingModule, "losses", losses)
    train(settings(corpus), tmp_path / "run")
    state = last_state(tmp_path / "run")
    assert state["global_step"] == 12 and state["progress"]["position"] == 15 and state["progress"]["skipped"] == 3
    assert all(value.isfinite().all() for value in state["state_dict"].values() if value.is_floating_point())
    assert sum("not finite" in record.message for record in caplog.records) == 3
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["skipped"] == 3


def test_a_gradient_that_is_not_finite_changes_nothing(corpus, tmp_path, monkeypatch):
    norm = torch.nn.utils.clip_grad_norm_
    calls = 0

    def clip(parameters, limit):
        nonlocal calls
        calls += 1
        parameters = list(parameters)
        if calls > 4:
            parameters[0].grad.fill_(torch.nan)
        return norm(parameters, limit)

    monkeypatch.setattr("samba_asr.training.module.nn.utils.clip_grad_norm_", clip)
    with pytest.raises(FloatingPointError, match="the gradient was not finite 20 times in a row, at step 4"):
        train(settings(corpus), tmp_path / "run")
    assert calls == 24
    state = last_state(tmp_path / "run")
    assert all(value.isfinite().all() for value in state["state_dict"].values() if value.is_floating_point())


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "hydra", "s4d"])
def test_weight_decay_is_for_matrices(kind):
    config = small_model()
    mixer = dataclasses.replace(config.encoder.mixer, kind=kind)
    model = SambaASR(dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, mixer=mixer)))
    decayed, others = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ids = [id(parameter) for group in (decayed, others) for parameter in group["params"]]
    assert sorted(ids) == sorted(names)
    exempt = {names[id(parameter)] for parameter in others["params"]}
    for name, parameter in model.named_parameters():
        rate = name.rpartition(".")[2] in ("A_log", "A_real_log", "A_imag")
        vector = parameter.ndim < 2 or name.rpartition(".")[2] in ("bias", "D", "dt_bias")
        assert (name in exempt) is (vector or rate), name


def test_the_learning_rate_rises_and_falls():
    def share(step):
        return learning_rate_share(step, step / 1000, warmup_steps=100, final_share=0.1)

    assert 0 < share(0) < 0.011 and share(49) == pytest.approx(0.5, rel=0.01)
    assert share(100) == max(share(step) for step in range(100, 1001)) > 0.97
    assert share(500) == pytest.approx(0.55) and share(1000) == pytest.approx(0.1) == share(2000)
    assert learning_rate_share(0, 0.0, warmup_steps=0, final_share=0.1) == 1.0
    assert run_progress(10, 100, 5.0, None) == 0.1
    assert run_progress(10, 100, 5.0, 20.0) == 0.25 and run_progress(90, 100, 5.0, 20.0) == 0.9


def test_global_statistics_normalise_the_training_data(corpus):
    config = settings(corpus, model=small_model(normalisation="global"))
    selection = selected(config)
    model = SambaASR(config.model)
    set_global_statistics(model, selection, seed=0)
    frames = []
    dataset = SpeechDataset(selection, 16_000)
    for place in range(len(dataset)):
        waveform = dataset[0, place].waveform
        features, lengths = model.features(waveform[None], torch.tensor([len(waveform)]))
        frames.append(features[0, : int(lengths[0])])
    frames = torch.cat(frames).double().numpy()
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(frames.std(0), 1, atol=1e-3)


def test_global_statistics_reach_the_checkpoint(corpus, tmp_path):
    train(settings(corpus, model=small_model(normalisation="global"), max_steps=1), tmp_path / "run")
    state = weights_of(tmp_path / "run")
    assert state["features.std"].std() > 0 and state["features.mean"].std() > 0


def test_a_run_starts_from_a_checkpoints_weights(whole_run, corpus, tmp_path):
    out, _ = whole_run
    optimiser = OptimiserConfig(learning_rate=1e-12, warmup_steps=0, weight_decay=0.0)
    config = settings(corpus, init_from=str(out / "checkpoint"), optimiser=optimiser, max_steps=1)
    train(config, tmp_path / "run")
    for name, value in weights_of(out).items():
        torch.testing.assert_close(weights_of(tmp_path / "run")[name], value, atol=1e-9, rtol=0)
    other_features = dataclasses.replace(config, model=small_model(normalisation="whisper"))
    with pytest.raises(ValueError, match=r"model.features.normalisation was causal and is now whisper"):
        train(other_features, tmp_path / "other features")
    calibrated = shutil.copytree(out / "checkpoint", tmp_path / "calibrated")
    save_config(calibrated, dataclasses.replace(load_checkpoint(calibrated)[0].config, words=WordConfig(-0.05)))
    (calibrated / "lexicon.txt").write_text("cat\n", encoding="utf-8")
    train(dataclasses.replace(config, init_from=str(calibrated)), tmp_path / "from calibrated word times")
    assert Transcriber.load(tmp_path / "from calibrated word times" / "checkpoint").lexicon == {"cat"}
    assert Transcriber.load(tmp_path / "run" / "checkpoint").lexicon is None
    wider = dataclasses.replace(config, model=dataclasses.replace(small_model(), d_model=64))
    with pytest.raises(ValueError, match="another model than the configured one"):
        train(wider, tmp_path / "wider")
    model, _ = load_checkpoint(out / "checkpoint")
    other = Tokenizer.train(["the cat sat on the mat with another cat and a dog"] * 3, 23)
    model = SambaASR(dataclasses.replace(model.config, vocab_size=other.vocab_size))
    save_checkpoint(tmp_path / "other", model, other, "")
    with pytest.raises(ValueError, match="another tokenizer"):
        train(dataclasses.replace(config, init_from=str(tmp_path / "other")), tmp_path / "again")


def test_a_resumed_run_needs_no_initial_weights_and_keeps_its_records(whole_run, corpus, tmp_path):
    initial = shutil.copytree(whole_run[0] / "checkpoint", tmp_path / "initial")
    config = settings(corpus, init_from=str(initial), max_steps=1)
    train(config, tmp_path / "run", command=["first"])
    shutil.rmtree(initial)
    for command in ("second", "third"):
        train(config, tmp_path / "run", resume=True, command=[command])
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert [versions["command"], *(record["command"] for record in versions["earlier"])] == ["third", "first", "second"]


def test_utterances_for_validation_are_spread_over_the_sets(corpus):
    selection = selected(settings(corpus))
    assert spread(selection, 10) is selection
    two = spread(selection, 2)
    assert two.utterances == selection.utterances[::2] and two.tokens == selection.tokens[::2]


def test_four_real_clips_are_learnt_by_heart(corpus, tmp_path):
    mixer = MixerConfig(d_state=16, head_dim=32)
    model = ModelConfig(
        d_model=64,
        encoder=EncoderConfig(n_layers=2, d_ff=128, subsampling_channels=8, dropout=0.0, mixer=mixer),
        decoder=DecoderConfig(n_layers=1, d_ff=128, dropout=0.0, mixer=mixer),
    )
    config = settings(
        corpus,
        model=model,
        data=dataclasses.replace(settings(corpus).data, batch_seconds=30.0, speed_factors=[1.0]),
        optimiser=OptimiserConfig(learning_rate=5e-3, warmup_steps=10, final_share=0.1),
        spec_augment=SpecAugmentConfig(n_time_masks=0, n_freq_masks=0),
        ctc_weight=0.5,
        label_smoothing=0.0,
        max_steps=150,
        validate_every=150,
        checkpoint_every=5,
        average_last=3,
    )
    scores = train(config, tmp_path / "run")
    assert scores.wer == 0.0
    learnt, tokenizer = load_checkpoint(tmp_path / "run" / "checkpoint")
    for utterance in selected(config).utterances:
        waveform = torch.from_numpy(load_audio(utterance.audio))
        states = learnt.encode(waveform[None], torch.tensor([len(waveform)]))
        for search in ("ctc", "autoregressive", "rescoring", "joint"):
            tokens = search_tokens(learnt, *states, SearchConfig(search=search))[0]
            assert tokenizer.decode(tokens) == normalize_for_training(utterance.text), search
