"""Configuration: round trips, presets, and clear refusals."""

import json

import pytest

from samba_asr.config import PRESETS, DecoderConfig, EncoderConfig, FeatureConfig, MixerConfig, ModelConfig
from samba_asr.model.asr import SambaASR


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    config = PRESETS[name]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(("name", "millions"), [("tiny", 6), ("small", 15), ("base", 35)])
def test_preset_sizes(name, millions):
    parameters = sum(p.numel() for p in SambaASR(PRESETS[name]).parameters())
    assert parameters == pytest.approx(millions * 1e6, rel=0.05)


@pytest.mark.slow
def test_large_preset_size():
    assert sum(p.numel() for p in SambaASR(PRESETS["large"]).parameters()) == pytest.approx(120e6, rel=0.05)


def test_tiny_is_deep_enough():
    assert PRESETS["tiny"].encoder.n_layers >= 8
    assert PRESETS["tiny"].decoder.n_layers >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, "model.layers is unknown"),
        ({"encoder": {"n_layer": 3}}, "model.encoder.n_layer is unknown"),
        ({"d_model": "160"}, r"model.d_model \('160'\) must be of type int"),
        ({"d_model": True}, r"model.d_model \(True\)"),
        ({"encoder": {"shared_projections": 1}}, r"model.encoder.shared_projections \(1\) must be of type bool"),
        ({"encoder": 3}, r"model.encoder \(3\) must be an object"),
        ({"d_model": 0}, r"d_model \(0\) must be positive"),
        ({"d_model": 100}, r"head_dim \(64\) must divide expand \* d_model \(200\)"),
        ({"encoder": {"mixer": {"groups": 4}}}, r"encoder.mixer.groups \(4\) must divide the number of heads \(5\)"),
        ({"encoder": {"mixer": {"groups": -1}}}, r"groups \(-1\) must be 0 \(automatic\) or positive"),
        ({"encoder": {"n_layers": 2, "ungrouped_layers": 3}}, r"ungrouped_layers \(3\) must be between 0 and n_layers"),
        ({"vocab_size": 4}, r"vocab_size \(4\)"),
        (
            {"encoder": {"mixer": {"kind": "attention"}}},
            r"kind \('attention'\) must be one of 'mamba', 'mamba2', 'hydra', 's4d'",
        ),
        ({"encoder": {"mixer": {"s4d_init": "inv"}}}, r"s4d_init \('inv'\) must be one of 'legs', 'lin'"),
        ({"encoder": {"mixer": {"kind": "s4d", "d_state": 7}}}, r"d_state \(7\) must be even where kind is 's4d'"),
        ({"decoder": {"mixer": {"kind": "hydra"}}}, r"mixer.kind \('hydra'\) hears what comes later.* 's4d'"),
        (
            {"encoder": {"mixer": {"kind": "hydra"}, "shared_projections": True}},
            r"shared_projections \(True\) must be False where mixer.kind is 'hydra'",
        ),
        (
            {"d_model": 100, "encoder": {"mixer": {"kind": "hydra"}}},
            r"encoder.mixer.head_dim \(64\) must divide expand \* d_model \(200\)",
        ),
        (
            {"encoder": {"mixer": {"kind": "hydra", "groups": 4}}},
            r"encoder.mixer.groups \(4\) must divide the number of heads \(5\)",
        ),
        ({"encoder": {"mixer": {"d_state": -1}}}, r"d_state \(-1\) must be 0 \(automatic\) or positive"),
        ({"encoder": {"dropout": 1.0}}, r"dropout \(1.0\) must be in \[0, 1\)"),
        ({"features": {"win_length": 500}}, r"win_length \(500\) must not exceed n_fft \(400\)"),
        ({"search": {"search": "beam"}}, r"search \('beam'\)"),
        ({"search": {"beam_size": 0}}, r"beam_size \(0\) must be positive"),
        ({"search": {"beam_size": 8.0}}, r"model.search.beam_size \(8.0\) must be of type int"),
        ({"search": {"ctc_weight": 1.5}}, r"ctc_weight \(1.5\) must be in \[0, 1\]"),
        ({"words": {"start_shift": float("nan")}}, r"start_shift \(nan\) must be a number"),
        ({"words": {"confidence_scale": -0.5}}, r"confidence_scale \(-0.5\) must not be negative"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(change)


def test_fields_keep_their_defaults():
    config = ModelConfig.from_dict({"encoder": {"n_layers": 2}})
    assert config == ModelConfig(encoder=EncoderConfig(n_layers=2))
    assert config.features == FeatureConfig()
    assert config.decoder.mixer == MixerConfig()


def test_state_sizes_are_the_papers():
    assert MixerConfig(kind="mamba").state_size == 16
    assert {MixerConfig(kind=kind).state_size for kind in ("mamba2", "hydra", "s4d")} == {64}
    assert MixerConfig(kind="mamba", d_state=8).state_size == 8


def test_s4d_may_decode_and_has_no_heads():
    mixer = MixerConfig(kind="s4d", groups=7)
    ModelConfig(d_model=100, encoder=EncoderConfig(mixer=mixer), decoder=DecoderConfig(mixer=mixer))


def test_a_complete_config_has_every_key():
    values = ModelConfig().to_dict()
    assert ModelConfig.from_dict(values, complete=True) == ModelConfig()
    del values["decoder"]["mixer"]["d_conv"]
    with pytest.raises(ValueError, match=r"model.decoder.mixer lacks d_conv"):
        ModelConfig.from_dict(values, complete=True)
