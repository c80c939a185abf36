"""A tiny Whisper with random weights, and its three kinds of files, each written from its own list of names."""

import numpy as np
import torch
from safetensors.torch import save_file

D_MODEL, N_MELS, N_LAYERS, N_STATES, N_TOKENS, VOCAB_SIZE = 128, 8, 2, 20, 32, 300


def random_weights():
    """Return weights under openai's names, large enough that attention matters."""
    d = D_MODEL
    shapes = {
        "encoder.conv1.weight": (d, N_MELS, 3),
        "encoder.conv1.bias": (d,),
        "encoder.conv2.weight": (d, d, 3),
        "encoder.conv2.bias": (d,),
        "encoder.positional_embedding": (N_STATES, d),
        "encoder.ln_post.weight": (d,),
        "encoder.ln_post.bias": (d,),
        "decoder.token_embedding.weight": (VOCAB_SIZE, d),
        "decoder.positional_embedding": (N_TOKENS, d),
        "decoder.ln.weight": (d,),
        "decoder.ln.bias": (d,),
    }
    for part, attentions in (("encoder", ["attn"]), ("decoder", ["attn", "cross_attn"])):
        for block in (f"{part}.blocks.{i}." for i in range(N_LAYERS)):
            for attention in attentions:
                for projection in ("query", "key", "value", "out"):
                    shapes[f"{block}{attention}.{projection}.weight"] = (d, d)
                    if projection != "key":
                        shapes[f"{block}{attention}.{projection}.bias"] = (d,)
            for norm in [*(f"{attention}_ln" for attention in attentions), "mlp_ln"]:
                shapes |= {f"{block}{norm}.weight": (d,), f"{block}{norm}.bias": (d,)}
            shapes |= {f"{block}mlp.0.weight": (4 * d, d), f"{block}mlp.0.bias": (4 * d,)}
            shapes |= {f"{block}mlp.2.weight": (d, 4 * d), f"{block}mlp.2.bias": (d,)}
    generator = torch.Generator().manual_seed(1)
    scale = 1.5 / d**0.5
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_openai(path, weights):
    dims = {"n_mels": N_MELS, "n_audio_state": D_MODEL, "n_vocab": VOCAB_SIZE}
    torch.save({"dims": dims, "model_state_dict": weights}, path)


def write_hugging_face(path, weights):
    names = {
        "encoder.positional_embedding": "encoder.embed_positions.weight",
        "decoder.positional_embedding": "decoder.embed_positions.weight",
        "decoder.token_embedding.weight": "decoder.embed_tokens.weight",
    }
    for kind in ("weight", "bias"):
        names |= {f"encoder.{conv}.{kind}": f"encoder.{conv}.{kind}" for conv in ("conv1", "conv2")}
        names |= {
            f"encoder.ln_post.{kind}": f"encoder.layer_norm.{kind}",
            f"decoder.ln.{kind}": f"decoder.layer_norm.{kind}",
        }
        for part in ("encoder", "decoder"):
            for i in range(N_LAYERS):
                ours, theirs = f"{part}.blocks.{i}.", f"{part}.layers.{i}."
                for attention, other in (("attn", "self_attn"), ("cross_attn", "encoder_attn")):
                    for projection, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
                        names[f"{ours}{attention}.{projection}.{kind}"] = f"{theirs}{other}.{letter}_proj.{kind}"
                    names[f"{ours}{attention}_ln.{kind}"] = f"{theirs}{other}_layer_norm.{kind}"
                names[f"{ours}mlp_ln.{kind}"] = f"{theirs}final_layer_norm.{kind}"
                names[f"{ours}mlp.0.{kind}"], names[f"{ours}mlp.2.{kind}"] = (
                    f"{theirs}fc1.{kind}",
                    f"{theirs}fc2.{kind}",
                )
    tensors = {f"model.{names[name]}": value for name, value in weights.items()}
    save_file({**tensors, "proj_out.weight": weights["decoder.token_embedding.weight"].clone()}, path)


def write_ctranslate2(path, weights):
    w = {name: value.numpy() for name, value in weights.items()}
    out = {
        f"encoder.{conv}.{kind}": w[f"encoder.{conv}.{kind}"]
        for conv in ("conv1", "conv2")
        for kind in ("weight", "bias")
    }
    out |= {
        f"{part}.position_encodings.encodings": w[f"{part}.positional_embedding"] for part in ("encoder", "decoder")
    }
    out |= {f"decoder.{name}.weight": w["decoder.token_embedding.weight"] for name in ("embeddings", "projection")}
    norms = {"encoder.ln_post": "encoder.layer_norm", "decoder.ln": "decoder.layer_norm"}
    for part in ("encoder", "decoder"):
        for i in range(N_LAYERS):
            ours, theirs = f"{part}.blocks.{i}", f"{part}.layer_{i}"
            norms |= {
                f"{ours}.attn_ln": f"{theirs}.self_attention.layer_norm",
                f"{ours}.mlp_ln": f"{theirs}.ffn.layer_norm",
            }
            stacks = {f"{ours}.attn": (f"{theirs}.self_attention", ("query key value", "out"))}
            if part == "decoder":
                norms[f"{ours}.cross_attn_ln"] = f"{theirs}.attention.layer_norm"
                stacks[f"{ours}.cross_attn"] = (f"{theirs}.attention", ("query", "key value", "out"))
            for name, (other, layers) in stacks.items():
                for n, projections in enumerate(layers):
                    for kind in ("weight", "bias"):
                        rows = [w.get(f"{name}.{p}.{kind}", np.zeros(D_MODEL, np.float32)) for p in projections.split()]
                        out[f"{other}.linear_{n}.{kind}"] = np.concatenate(rows)
            for kind in ("weight", "bias"):
                for n in (0, 1):
                    out[f"{theirs}.ffn.linear_{n}.{kind}"] = w[f"{ours}.mlp.{2 * n}.{kind}"]
    for ours, theirs in norms.items():
        out[f"{theirs}.gamma"], out[f"{theirs}.beta"] = w[f"{ours}.weight"], w[f"{ours}.bias"]
    np.savez(path, **out, **{"decoder.num_heads": np.int16(2), "encoder.pre_norm": np.int8(1)})


WRITERS = {".pt": write_openai, ".safetensors": write_hugging_face, ".npz": write_ctranslate2}
