#!/usr/bin/env python3
"""Tiny GPT-2 checkpoints with the logits and greedy tokens that Hugging Face transformers computes from them.

Made with Python 3.11.2, torch 1.13, transformers 4.40.2, safetensors 0.8.0 and numpy 1.24.2:
    pip install 'transformers==4.40.*' safetensors 'numpy<2' torch
    python3 tests/golden/make_golden.py tests/golden/data
The files are committed; nothing in the build or the tests runs this script.

data/VARIANT/ is a model directory plus golden.json:
    note      what the variant is for
    prompts   [[id, ...], ...]
    logits    per prompt the rows of logits of its last positions, the prompt's last position last
    greedy    per prompt the 20 tokens that follow when the largest logit is taken each time (no token ends it)
    margins   per greedy token how far its logit stood above the second largest
Everything is computed in float64 from the stored weights (so from the rounded ones where they are float16 or bfloat16),
without a key-value cache. Seeds are searched upwards from kFirstSeed until every margin is at least kMinMargin and the
continuations vary, so a float32 implementation must find the same tokens.
"""
import json
import os
import shutil
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

kFirstSeed = 1
kMinMargin = 0.005
kNewTokens = 20

SMALL = dict(n_embd=16, n_head=4, n_layer=2, vocab_size=61, n_positions=32)
# name -> (note, config fields, how to store it)
VARIANTS = {
    "base": ("3 blocks, 5 heads of 4, odd vocabulary", dict(n_embd=20, n_head=5, n_layer=3, vocab_size=101, n_positions=32), {}),
    "head_dim_16": ("3 heads of 16", dict(n_embd=48, n_head=3, n_layer=2, n_inner=64, vocab_size=53, n_positions=32), {}),
    "head_dim_13": ("5 heads of 13, one block", dict(n_embd=65, n_head=5, n_layer=1, n_inner=70, vocab_size=37, n_positions=32), {}),
    "five_layers": ("5 blocks", dict(n_embd=12, n_head=2, n_layer=5, vocab_size=61, n_positions=32), {}),
    "n_inner": ("n_inner is not 4 * n_embd", dict(SMALL, n_inner=37), {}),
    "one_head": ("a single head", dict(SMALL, n_head=1), {}),
    "gelu": ("activation_function gelu (erf)", dict(SMALL, activation_function="gelu"), {}),
    "gelu_pytorch_tanh": ("activation_function gelu_pytorch_tanh", dict(SMALL, activation_function="gelu_pytorch_tanh"), {}),
    "relu": ("activation_function relu", dict(SMALL, activation_function="relu"), {}),
    "silu": ("activation_function silu", dict(SMALL, activation_function="silu"), {}),
    "unscaled": ("scale_attn_weights false", dict(SMALL, scale_attn_weights=False), {}),
    "inverse_layer": ("scale_attn_by_inverse_layer_idx true", dict(SMALL, n_layer=3, scale_attn_by_inverse_layer_idx=True), {}),
    "reorder_upcast": ("reorder_and_upcast_attn true; the logits are those of the plain order in float64, which is the same "
                       "arithmetic without float32's roundings", dict(SMALL, reorder_and_upcast_attn=True), {}),
    "untied": ("tie_word_embeddings false", dict(SMALL, tie_word_embeddings=False), {}),
    "epsilon": ("layer_norm_epsilon 1e-2, small embeddings so that it matters", dict(SMALL, layer_norm_epsilon=1e-2),
                dict(embedding_std=0.1)),
    "combined": ("untied, relu, n_inner 24, inverse layer index without 1/sqrt(head_dim), one block more than heads",
                 dict(SMALL, n_head=2, n_layer=3, n_inner=24, tie_word_embeddings=False, activation_function="relu",
                      scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True), {}),
    "no_prefix": ("tensor names without transformer.", SMALL, dict(no_prefix=True)),
    "sharded": ("shards of at most 20 KB with an index", SMALL, dict(max_shard_size="20KB")),
    "float16": ("stored as float16", SMALL, dict(dtype=torch.float16)),
    "bfloat16": ("stored as bfloat16", SMALL, dict(dtype=torch.bfloat16)),
    "long": ("a prompt of 150 tokens", dict(SMALL, n_positions=200), dict(prompts=[3, 64, 65, 150])),
    "mask_buffers": ("attn.bias and attn.masked_bias as old versions stored them", SMALL, dict(mask_buffers=True)),
    "stored_head": ("tied, but lm_head.weight is stored as well", SMALL, dict(stored_head=True)),
}


def randomize(model, generator, embedding_std=0.4):
    """Wide enough that logits are spread and every part of the model matters."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "ln_" in name and name.endswith("weight"):
                value.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                value.copy_(0.1 * noise)
            elif "wte" in name or "wpe" in name or "lm_head" in name:
                value.copy_(embedding_std * noise)
            else:
                value.copy_(1.6 / value.shape[0] ** 0.5 * noise)


def save(model, directory, no_prefix=False, max_shard_size="1GB", dtype=torch.float32, mask_buffers=False,
         stored_head=False, **_):
    shutil.rmtree(directory, ignore_errors=True)
    model = model.to(dtype)
    (model.transformer if no_prefix else model).save_pretrained(directory, max_shard_size=max_shard_size)
    extra = os.path.join(directory, "generation_config.json")
    if os.path.exists(extra):
        os.remove(extra)
    path = os.path.join(directory, "model.safetensors")
    if mask_buffers or stored_head:
        tensors = load_file(path)
        if stored_head:
            tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        if mask_buffers:
            n = model.config.n_positions
            for block in range(model.config.n_layer):
                mask = torch.tril(torch.ones((n, n), dtype=torch.uint8)).view(1, 1, n, n)
                tensors[f"transformer.h.{block}.attn.bias"] = mask
                tensors[f"transformer.h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
        save_file(tensors, path, metadata={"format": "pt"})


def stored_model(directory, config):
    """The model in float64, from the bytes on disk and not from what was meant to be written."""
    files = sorted(f for f in os.listdir(directory) if f.endswith(".safetensors"))
    tensors = {}
    for file in files:
        with safe_open(os.path.join(directory, file), "pt") as opened:
            for name in opened.keys():
                if not name.endswith((".attn.bias", ".attn.masked_bias")):
                    plain = name[len("transformer."):] if name.startswith("transformer.") else name
                    tensors[plain if plain.startswith("lm_head") else "transformer." + plain] = opened.get_tensor(name).double()
    if config.tie_word_embeddings:
        tensors.setdefault("lm_head.weight", tensors["transformer.wte.weight"])
    fields = config.to_dict()
    fields["reorder_and_upcast_attn"] = False  # Hugging Face's reordered path computes in float32
    model = GPT2LMHeadModel(GPT2Config(**fields)).double().eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and all(".attn." in name and name.endswith("bias") for name in missing), (missing, unexpected)
    return model


def all_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def golden(model, config, lengths, generator):
    """None when a continuation is monotonous or too close to call."""
    result = dict(prompts=[], logits=[], greedy=[], margins=[])
    for length in lengths:
        ids = torch.randint(0, config.vocab_size, (length,), generator=generator).tolist()
        logits = all_logits(model, ids)
        rows = logits if length <= 6 else logits[-1:]
        tokens, margins = [], []
        for _ in range(kNewTokens):
            top = torch.topk(all_logits(model, ids + tokens)[-1], 2)
            tokens.append(int(top.indices[0]))
            margins.append(float(top.values[0] - top.values[1]))
            if margins[-1] < kMinMargin:
                return None
        if len(set(tokens)) < 4:
            return None
        result["prompts"].append(ids)
        result["logits"].append([[float(f"{value:.9g}") for value in row.tolist()] for row in rows])
        result["greedy"].append(tokens)
        result["margins"].append([float(f"{margin:.4g}") for margin in margins])
    return result


def check_reordered(directory, config, result):
    """Hugging Face's own float32 result with reorder_and_upcast_attn, as it would be run."""
    model = GPT2LMHeadModel.from_pretrained(directory).eval()
    assert model.config.reorder_and_upcast_attn == config.reorder_and_upcast_attn
    for ids, rows in zip(result["prompts"], result["logits"]):
        difference = all_logits(model, ids)[-1].double() - torch.tensor(rows[-1], dtype=torch.float64)
        assert difference.abs().max() < 1e-4, difference.abs().max()


def write_golden(directory, note, seed, result):
    with open(os.path.join(directory, "golden.json"), "w") as file:
        file.write('{\n"note": %s,\n"seed": %d,\n' % (json.dumps(note), seed))
        file.write(",\n".join('"%s": [\n%s\n]' % (key, ",\n".join(json.dumps(item) for item in result[key])) for key in result))
        file.write("\n}\n")


def make(root, name):
    note, fields, storage = VARIANTS[name]
    directory = os.path.join(root, name)
    for seed in range(kFirstSeed, kFirstSeed + 1000):
        generator = torch.Generator().manual_seed(seed)
        config = GPT2Config(**fields, bos_token_id=None, eos_token_id=None, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
        model = GPT2LMHeadModel(config).eval()
        randomize(model, generator, storage.get("embedding_std", 0.4))
        save(model, directory, **storage)
        model = stored_model(directory, config)
        result = golden(model, config, storage.get("prompts", [1, 5, 12]), generator)
        if result is not None:
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear and varied continuations")
    if storage.get("dtype", torch.float32) == torch.float32:
        check_reordered(directory, config, result)
    write_golden(directory, note, seed, result)
    print(f"{name}: seed {seed}, smallest margin {min(min(m) for m in result['margins']):.3f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: make_golden.py DIRECTORY [VARIANT...]")
    for variant in sys.argv[2:] or VARIANTS:
        make(sys.argv[1], variant)
