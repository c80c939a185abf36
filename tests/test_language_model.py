"""The language model: its forward pass, its steps, its losses, its checkpoint folder."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from samba_asr.config import LanguageModelConfig, MixerConfig
from samba_asr.model.checkpoint import load_checkpoint
from samba_asr.model.checkpoint_files import CheckpointError
from samba_asr.model.language_model import LanguageModel
from samba_asr.model.language_model_checkpoint import load_language_model, save_language_model
from samba_asr.text.tokenizer import BOS_ID, EOS_ID, Tokenizer

WORDS = "the cat sat on the mat a dog barked no bird sang that day"
KINDS = {
    "mamba2": MixerConfig(d_state=8, head_dim=8, expand=1),
    "mamba": MixerConfig(kind="mamba", d_state=8),
    "s4d": MixerConfig(kind="s4d", d_state=8),
}


def make_model(kind="mamba2", vocab_size=20, **changes):
    config = LanguageModelConfig(vocab_size, d_model=16, n_layers=2, d_ff=24, mixer=KINDS[kind])
    return LanguageModel(dataclasses.replace(config, **changes)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([WORDS] * 3, 26)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A language model's folder that a test may damage."""
    save_language_model(tmp_path / "lm", make_model(vocab_size=tokenizer.vocab_size), tokenizer, "# card\n")
    return tmp_path / "lm"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("d_ff", [0, 24])
@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_is_the_steps_one_after_the_other(kind, d_ff, dtype, tolerance):
    model = make_model(kind, d_ff=d_ff).to(dtype)
    tokens = torch.randint(4, 20, (3, 11))
    logits, end = model(tokens, torch.tensor([11, 11, 11]), model.initial_state(3))
    state = model.initial_state(3)
    for i in range(11):
        step, state = model.step(tokens[:, i], state)
        torch.testing.assert_close(step, logits[:, i], rtol=tolerance, atol=tolerance)
    again = torch.tensor([5, 6, 7])
    torch.testing.assert_close(model.step(again, end)[0], model.step(again, state)[0], rtol=tolerance, atol=tolerance)


def test_a_text_goes_on_from_the_state_after_its_first_part():
    model = make_model().double()
    tokens = torch.randint(4, 20, (2, 9))
    whole, _ = model(tokens, torch.tensor([9, 9]), model.initial_state(2))
    _, state = model(tokens[:, :4], torch.tensor([4, 4]), model.initial_state(2))
    rest, _ = model(tokens[:, 4:], torch.tensor([5, 5]), state)
    torch.testing.assert_close(rest, whole[:, 4:])
    swapped, _ = model(tokens[[1, 0], 4:], torch.tensor([5, 5]), state.reorder(torch.tensor([1, 0])))
    torch.testing.assert_close(swapped, whole[[1, 0], 4:])


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_log_probabilities_summed_by_hand(kind):
    """A text at a time, a step at a time: no padding, no batch, no cross-entropy."""
    model = make_model(kind).double()
    texts = [[5, 6, 7, 8, 5], [9, 4], [], [11]]
    tokens = torch.full((4, 5), 17)  # what stands in the padding must not matter
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.int64)
    losses = model.losses(tokens, torch.tensor([len(text) for text in texts]))
    assert losses.shape == (4, 6)
    for found, text in zip(losses, texts, strict=True):
        state, expected = model.initial_state(1), []
        for given, said in zip([BOS_ID, *text], [*text, EOS_ID], strict=True):
            logits, state = model.step(torch.tensor([given]), state)
            weights = logits[0].exp()
            expected.append(-(weights[said] / weights.sum()).log())
        torch.testing.assert_close(found[: len(text) + 1], torch.stack(expected))
        assert not found[len(text) + 1 :].any()


def test_what_comes_later_does_not_matter():
    model = make_model().double()
    tokens = torch.randint(4, 20, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = 4 + (tokens[0, 5] - 3) % 16
    before, after = (model.losses(given, torch.tensor([8]))[0] for given in (tokens, changed))
    assert torch.equal(before[:5], after[:5]) and not torch.isclose(before[5:], after[5:]).any()


def test_embeddings_are_the_last_projection_and_learn_from_both_ends():
    model = make_model()
    assert model.out_proj.weight is model.embedding.weight
    model.losses(torch.tensor([[5, 6]]), torch.tensor([2])).sum().backward()
    assert model.embedding.weight.grad[5:7].any() and model.embedding.weight.grad[12].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 4}, r"vocab_size \(4\) must be at least 5"),
        ({"d_model": 0}, r"d_model \(0\) must be positive"),
        ({"n_layers": 0}, r"n_layers \(0\) must be positive"),
        ({"d_ff": -1}, r"d_ff \(-1\) must be 0"),
        ({"dropout": 1.0}, r"dropout \(1.0\)"),
        ({"mixer": MixerConfig(kind="hydra")}, r"'hydra'.* must not"),
        ({"mixer": MixerConfig(head_dim=48)}, r"head_dim \(48\)"),
    ],
)
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LanguageModelConfig(), **changes)


def test_a_config_goes_to_json_and_back():
    config = LanguageModelConfig(99, mixer=KINDS["s4d"])
    assert LanguageModelConfig.from_dict(json.loads(json.dumps(config.to_dict())), complete=True) == config
    with pytest.raises(ValueError, match=r"language model.depth is unknown"):
        LanguageModelConfig.from_dict({"depth": 3})


def test_the_default_is_small():
    model = LanguageModel(LanguageModelConfig(vocab_size=5_830))
    assert 3.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 4.5e6


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_are_bitwise_equal(kind, tokenizer, tmp_path):
    model = make_model(kind, vocab_size=tokenizer.vocab_size)
    save_language_model(tmp_path / "a" / "lm", model, tokenizer, "# card\n")
    again, same_tokenizer = load_language_model(tmp_path / "a" / "lm")
    assert again.config == model.config and not again.training
    assert same_tokenizer.model_proto == tokenizer.model_proto
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.out_proj.weight is again.embedding.weight
    names = sorted(path.name for path in (tmp_path / "a" / "lm").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "tokenizer.model"]
    assert (tmp_path / "a" / "lm" / "README.md").read_text() == "# card\n"
    config = json.loads((tmp_path / "a" / "lm" / "config.json").read_text())
    assert (config["format"], config["version"]) == ("samba-asr-lm", 1)
    assert LanguageModelConfig.from_dict(config["model"]) == model.config


def test_tied_weights_are_stored_once(folder):
    stored = load_file(folder / "model.safetensors")
    assert "embedding.weight" in stored and "out_proj.weight" not in stored


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_what_is_delicate(kind, tokenizer, tmp_path):
    model = make_model(kind, vocab_size=tokenizer.vocab_size)
    save_language_model(tmp_path / "half", model, tokenizer, "", dtype=torch.float16)
    delicate = ("A_log", "A_real_log", "A_imag")
    for name, tensor in load_file(tmp_path / "half" / "model.safetensors").items():
        exact = tensor.dim() < 2 or name.endswith(delicate)
        assert tensor.dtype == (torch.float32 if exact else torch.float16), name
    half, _ = load_language_model(tmp_path / "half")
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float32}
    tokens, lengths = torch.randint(4, tokenizer.vocab_size, (2, 9)), torch.tensor([9, 6])
    torch.testing.assert_close(half.losses(tokens, lengths), model.losses(tokens, lengths), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        load_language_model(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_language_model(tmp_path / "nowhere")


def test_a_folder_of_the_other_kind_is_said_to_be_one(folder, tiny_checkpoint):
    with pytest.raises(CheckpointError, match=r"tiny-random holds a recogniser; give the folder of a language model"):
        load_language_model(tiny_checkpoint)
    with pytest.raises(CheckpointError, match=r"lm holds a language model; give the folder of a recogniser"):
        load_checkpoint(folder)


def change(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_configs_that_cannot_be_read(folder, tmp_path):
    for changes, message in (
        ({"version": 2}, r"version 2, this program reads versions 1 to 1"),
        ({"version": None}, r"version None"),
        ({"format": "other"}, r'lacks "format": "samba-asr-lm"'),
        ({"model": {"vocab_size": 26}}, r"config.json: language model lacks d_model"),
        ({"model": LanguageModelConfig(26).to_dict() | {"heads": 4}}, r"language model.heads is unknown"),
        ({"model": LanguageModelConfig(27).to_dict()}, r"tokenizer.model has 26 pieces, but config.json says 27"),
        ({"model": LanguageModelConfig(26).to_dict()}, r"it lacks blocks\.2"),
    ):
        broken = shutil.copytree(folder, tmp_path / "broken", dirs_exist_ok=True)
        change(broken, **changes)
        with pytest.raises(CheckpointError, match=message):
            load_language_model(broken)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_language_model(folder)


def test_weights_that_cannot_be_read(folder):
    path = folder / "model.safetensors"
    good = load_file(path)
    for changes, message in (
        ({"norm.bias": torch.full((16,), torch.nan)}, r"norm.bias holds values that are not finite"),
        ({"norm.bias": torch.zeros(17)}, r"norm.bias has shape \(17,\), but config.json asks for \(16,\)"),
        ({"norm.scale": torch.zeros(16)}, r"it has norm.scale"),
    ):
        save_file(good | changes, path)
        with pytest.raises(CheckpointError, match=message):
            load_language_model(folder)
    save_file({name: value for name, value in good.items() if name != "embedding.weight"}, path)
    with pytest.raises(CheckpointError, match=r"lacks embedding.weight, out_proj.weight"):
        load_language_model(folder)
    path.write_bytes(b"words")
    with pytest.raises(CheckpointError, match="damaged"):
        load_language_model(folder)


def test_a_tokenizer_of_another_size_is_not_saved(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"the tokenizer has 26 pieces, the model's vocab_size is 20"):
        save_language_model(tmp_path / "lm", make_model(), tokenizer, "")
