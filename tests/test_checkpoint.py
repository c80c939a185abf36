"""The checkpoint folder: bitwise round trips and clear refusals."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from model_fixture import CONFIG
from safetensors.torch import load_file, save_file

from samba_asr.config import CONFIG_VERSION, MixerConfig, SearchConfig, WordConfig
from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, save_config
from samba_asr.text.tokenizer import Tokenizer


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """A checkpoint that a test may damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def test_save_and_load_are_bitwise_equal(folder, tmp_path):
    model, tokenizer = load_checkpoint(folder)
    model.features.set_statistics(torch.randn(80), torch.rand(80) + 0.1)
    save_checkpoint(tmp_path / "again", model, tokenizer, "# card\n")
    again, same_tokenizer = load_checkpoint(tmp_path / "again")
    assert again.config == model.config
    assert same_tokenizer.model_proto == tokenizer.model_proto
    assert (tmp_path / "again" / "README.md").read_text() == "# card\n"
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.training
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    ]


def test_half_precision_keeps_what_is_delicate(folder, tmp_path):
    model, tokenizer = load_checkpoint(folder)
    save_checkpoint(tmp_path / "half", model, tokenizer, "", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        delicate = name.startswith("features.") or name.endswith(("A_log", "bias", ".D")) or tensor.dim() < 2
        assert stored[name].dtype == (torch.float32 if delicate else torch.float16), name
    half, _ = load_checkpoint(tmp_path / "half")
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float32}
    features = torch.randn(1, 60, 80), torch.tensor([60])
    torch.testing.assert_close(
        half.encode_features(*features)[0], model.encode_features(*features)[0], rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize(
    ("kind", "names", "shape"), [("mamba", ["A_log"], (64, 8)), ("s4d", ["A_real_log", "A_imag"], (64, 4))]
)
def test_half_precision_keeps_how_states_fade(kind, names, shape, folder, tmp_path):
    _, tokenizer = load_checkpoint(folder)
    mixer = MixerConfig(kind=kind, d_state=8)
    model = SambaASR(replace(CONFIG, encoder=replace(CONFIG.encoder, mixer=mixer)))
    save_checkpoint(tmp_path / "half", model, tokenizer, "", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    for name in names:
        tensor = stored[f"encoder.blocks.0.mixer.forwards.{name}"]
        assert tensor.shape == shape and tensor.dtype == torch.float32


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        load_checkpoint(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_checkpoint(tmp_path / "nowhere")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_other_version(folder):
    for version in (0, CONFIG_VERSION + 1, "1", None, 1.0):
        change_config(folder, version=version)
        with pytest.raises(
            CheckpointError, match=rf"version {version}, this program reads versions 1 to {CONFIG_VERSION}"
        ):
            load_checkpoint(folder)


def test_version_1_takes_the_defaults_of_what_came_later(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model"]["search"] = {"search": "autoregressive", "max_tokens_per_second": 20.0}
    change_config(folder, version=1, model=config["model"])
    model, _ = load_checkpoint(folder)
    assert model.config.search == SearchConfig("autoregressive", 20.0, beam_size=8, ctc_weight=0.5)
    change_config(folder, version=2)
    with pytest.raises(CheckpointError, match=r"model.search lacks beam_size, ctc_weight"):
        load_checkpoint(folder)
    of_version_2 = config["model"]["search"] | {"beam_size": 3, "ctc_weight": 0.25}
    change_config(folder, version=2, model=config["model"] | {"search": of_version_2})
    assert load_checkpoint(folder)[0].config.search == SearchConfig("autoregressive", 20.0, 3, 0.25, length_bonus=0.0)
    change_config(folder, version=3)
    with pytest.raises(CheckpointError, match=r"model.search lacks length_bonus"):
        load_checkpoint(folder)
    encoder = {name: value for name, value in config["model"]["encoder"].items() if name != "shared_projections"}
    of_version_3 = config["model"] | {"search": of_version_2 | {"length_bonus": 0.5}, "encoder": encoder}
    change_config(folder, version=3, model=of_version_3)
    assert load_checkpoint(folder)[0].config.encoder.shared_projections is False
    change_config(folder, version=4)
    with pytest.raises(CheckpointError, match=r"model.encoder lacks shared_projections"):
        load_checkpoint(folder)
    of_version_4 = copy.deepcopy(of_version_3)
    of_version_4["encoder"]["shared_projections"] = False
    for part in ("encoder", "decoder"):
        del of_version_4[part]["mixer"]["groups"]
    change_config(folder, version=4, model=of_version_4)
    model, _ = load_checkpoint(folder)
    assert (model.config.encoder.mixer.groups, model.config.decoder.mixer.groups) == (1, 1)
    change_config(folder, version=5)
    with pytest.raises(CheckpointError, match=r"model.encoder.mixer lacks groups"):
        load_checkpoint(folder)
    for broken, says in (
        (config["model"] | {"search": 3}, r"model.search \(3\)"),
        (3, r"model \(3\)"),
        ({}, "model lacks"),
    ):
        change_config(folder, version=1, model=broken)
        with pytest.raises(CheckpointError, match=says):
            load_checkpoint(folder)


def test_version_6_had_no_s4d(folder):
    before, config = load_checkpoint(folder)[0].config, json.loads((folder / "config.json").read_text())
    assert config["version"] == CONFIG_VERSION == 10
    for part in ("encoder", "decoder"):
        del config["model"][part]["mixer"]["s4d_init"]
    change_config(folder, version=6, model=config["model"])
    assert load_checkpoint(folder)[0].config == before
    change_config(folder, version=7)
    with pytest.raises(CheckpointError, match=r"model.encoder.mixer lacks s4d_init"):
        load_checkpoint(folder)


def test_version_9_had_no_lexicon(folder):
    before, config = load_checkpoint(folder)[0].config, json.loads((folder / "config.json").read_text())
    assert config["model"]["search"].pop("unknown_word_penalty") == 2.0
    change_config(folder, version=9, model=config["model"])
    assert load_checkpoint(folder)[0].config == before
    change_config(folder, version=10)
    with pytest.raises(CheckpointError, match=r"model.search lacks unknown_word_penalty"):
        load_checkpoint(folder)


def test_version_7_knew_nothing_of_words(folder):
    config = json.loads((folder / "config.json").read_text())
    assert WordConfig(**config["model"].pop("words")) == WordConfig(0.0, 0.0, 1.0, 0.0)
    change_config(folder, version=7, model=config["model"])
    assert load_checkpoint(folder)[0].config.words == WordConfig()
    change_config(folder, version=8)
    with pytest.raises(CheckpointError, match=r"model lacks words"):
        load_checkpoint(folder)


def test_a_config_is_saved_alone(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = load_checkpoint(folder)[0].config
    changed = replace(config, words=WordConfig(-0.05, 0.1, 0.5, 0.25))
    save_config(folder, changed)
    assert load_checkpoint(folder)[0].config == changed
    save_config(folder, config)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_config_that_is_no_json_or_not_ours(folder):
    change_config(folder, format="whisper")
    with pytest.raises(CheckpointError, match="no Samba-ASR configuration"):
        load_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_checkpoint(folder)


def change_model_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, model=config["model"] | changes)


def test_unknown_key(folder):
    change_model_config(folder, attention_heads=4)
    with pytest.raises(CheckpointError, match=r"config.json: model.attention_heads is unknown"):
        load_checkpoint(folder)


def test_missing_key_takes_no_default(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["model"]["features"]["normalisation"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"model.features lacks normalisation"):
        load_checkpoint(folder)
    del config["model"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"model lacks vocab_size, d_model"):
        load_checkpoint(folder)


def test_weights_that_are_not_finite(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["ctc_head.bias"][3] = torch.nan
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"ctc_head.bias holds values that are not finite"):
        load_checkpoint(folder)


def test_wrong_width_and_vocabulary(folder):
    change_model_config(folder, d_model=48)
    with pytest.raises(CheckpointError, match=r"has shape \(.*, but config.json asks for \("):
        load_checkpoint(folder)
    change_model_config(folder, d_model=32, vocab_size=41)
    with pytest.raises(CheckpointError, match=r"tokenizer.model has 40 pieces, but config.json says 41"):
        load_checkpoint(folder)


def test_missing_and_unknown_tensors(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["ctc_head.scale"] = tensors.pop("ctc_head.bias")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"lacks ctc_head.bias and has ctc_head.scale"):
        load_checkpoint(folder)


def test_damaged_weights_and_tokenizer(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(folder)
    (folder / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"tokenizer.model"):
        load_checkpoint(folder)


def test_tokenizer_of_another_size_is_not_saved(folder, tmp_path):
    model, _ = load_checkpoint(folder)
    other = Tokenizer.train(["a few words for another tokenizer"] * 3, 22)
    with pytest.raises(ValueError, match="the tokenizer has 22 pieces"):
        save_checkpoint(tmp_path / "other", model, other, "")


def test_loading_reads_no_pickle_and_needs_no_librosa(folder):
    code = f"""
import pickle, sys
def refuse(*args, **kwargs): raise AssertionError("pickle was read")
pickle.load = pickle.loads = pickle.Unpickler = refuse
from samba_asr.model.checkpoint import load_checkpoint
load_checkpoint({str(folder)!r})
assert "librosa" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_new_model_takes_filters_from_librosa():
    import librosa

    from samba_asr.config import ModelConfig

    filters = SambaASR(ModelConfig()).features.mel_filters
    expected = torch.from_numpy(librosa.filters.mel(sr=16_000, n_fft=400, n_mels=80))
    torch.testing.assert_close(filters, expected)


def test_others_may_read_what_the_umask_lets_them(folder, tmp_path):
    """safetensors writes files that only their owner can read; a shared model folder needs the usual mode."""
    model, tokenizer = load_checkpoint(folder)
    save_checkpoint(tmp_path / "again", model, tokenizer, "")
    modes = {path.stat().st_mode for path in (tmp_path / "again").iterdir()}
    assert len(modes) == 1
