"""The recipe's average.py: weights against numpy, what it keeps, what it refuses."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from samba_asr.model.asr import SambaASR
from samba_asr.model.checkpoint import load_checkpoint, save_checkpoint, save_config
from samba_asr.transcriber import Transcriber

SCRIPT = Path(__file__).parent.parent / "recipes" / "librispeech" / "average.py"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def average():
    spec = importlib.util.spec_from_file_location("average_recipe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folders(tiny_checkpoint, tmp_path):
    """A checkpoint, and one whose weights are others and whose search and word settings are, too."""
    return two_of(tiny_checkpoint, tmp_path)


def two_of(checkpoint, tmp_path):
    made = [shutil.copytree(checkpoint, tmp_path / name) for name in ("first", "second")]
    tensors = load_file(made[1] / WEIGHTS)
    drawn = torch.Generator().manual_seed(0)
    changed = {name: value + 0.01 * torch.randn(value.shape, generator=drawn) for name, value in weights(tensors)}
    save_file(tensors | changed, made[1] / WEIGHTS)
    config = load_checkpoint(made[1])[0].config
    search, words = replace(config.search, beam_size=7), replace(config.words, confidence_bias=0.5)
    save_config(made[1], replace(config, search=search, words=words))
    return made


@pytest.fixture
def tied(tiny_checkpoint, tmp_path):
    """The checkpoint, as a model whose decoder's last projection is its embedding."""
    model, tokenizer = load_checkpoint(tiny_checkpoint)
    config = replace(model.config, decoder=replace(model.config.decoder, tied_embedding=True))
    save_checkpoint(tmp_path / "tied", SambaASR(config), tokenizer, "")
    return two_of(tmp_path / "tied", tmp_path)


def weights(tensors):
    return [(name, value) for name, value in tensors.items() if value.is_floating_point() and "features" not in name]


@pytest.mark.parametrize("which", ["folders", "tied"])
def test_the_mean_is_numpys_and_a_folder_named_twice_counts_twice(average, which, tmp_path, clips, request):
    folders = request.getfixturevalue(which)
    out = tmp_path / "mean"
    assert average.main([str(folders[0]), str(folders[1]), str(folders[1]), "--out", str(out)]) == 0
    first, second, found = (load_file(folder / WEIGHTS) for folder in (*folders, out))
    assert first.keys() == found.keys()
    for name, value in weights(found):
        expected = (first[name].double().numpy() + 2 * second[name].double().numpy()) / 3
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=name)
        assert not torch.equal(value, first[name])
    assert (out / "config.json").read_bytes() == (folders[0] / "config.json").read_bytes()
    assert (out / "tokenizer.model").read_bytes() == (folders[0] / "tokenizer.model").read_bytes()
    assert str(folders[1]) in (out / "README.md").read_text()
    assert isinstance(Transcriber.load(out).transcribe(clips[0][0]).text, str)


@pytest.mark.parametrize("which", ["first", "second"])
def test_the_lexicon_is_the_firsts(average, folders, tmp_path, which):
    (tmp_path / which / "lexicon.txt").write_text("word\n", encoding="utf-8")
    assert average.main([*map(str, folders), "--out", str(tmp_path / "mean")]) == 0
    assert (tmp_path / "mean" / "lexicon.txt").exists() == (which == "first")
    assert Transcriber.load(tmp_path / "mean").lexicon == ({"word"} if which == "first" else None)


def test_half_of_the_size_and_the_same_numbers(average, folders, tmp_path):
    arguments = [str(folders[0]), str(folders[1])]
    assert average.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert average.main([*arguments, "--out", str(tmp_path / "half"), "--half"]) == 0
    whole, half = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "half"))
    assert any(value.dtype == torch.float16 for value in half.values())
    for name, value in whole.items():
        assert torch.equal(half[name], value.to(half[name].dtype))


@pytest.mark.parametrize("what", ["settings", "tokenizer", "no model", "exists"])
def test_what_does_not_fit_is_refused(average, folders, tmp_path, capsys, what):
    out = tmp_path / "mean"
    expected = {"settings": "different model settings", "tokenizer": "different tokenizers"}.get(what, "")
    if what == "settings":
        content = json.loads((folders[1] / "config.json").read_text())
        content["model"]["encoder"]["dropout"] = 0.4321
        (folders[1] / "config.json").write_text(json.dumps(content))
    elif what == "tokenizer":
        other_tokenizer(folders[1] / "tokenizer.model")
    elif what == "no model":
        (folders[1] / WEIGHTS).unlink()
        expected = WEIGHTS
    else:
        out.mkdir()
        expected = str(out)
    assert average.main([str(folder) for folder in folders] + ["--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("average.py: error: ") and expected in said and len(said.splitlines()) == 1
    assert what == "exists" or not out.exists()


def other_tokenizer(path):
    """Exchange two pieces, so that the size still fits."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    model.pieces[-1].piece, model.pieces[-2].piece = model.pieces[-2].piece, model.pieces[-1].piece
    path.write_bytes(model.SerializeToString())
