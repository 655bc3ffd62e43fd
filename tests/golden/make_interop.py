#!/usr/bin/env python3
"""Tiny checkpoints as other software writes them, with the logits, greedy tokens and token ids that Hugging Face computes.

Made with Python 3.11.2, torch 1.13, transformers 4.40.2, tokenizers 0.19.1, safetensors 0.8.0 and numpy 1.24.2:
    pip install 'transformers==4.40.*' 'tokenizers==0.19.*' safetensors 'numpy<2' torch
    python3 tests/golden/make_interop.py tests/golden/data_interop
The files are committed; nothing in the build or the tests runs this script.

data_interop/VARIANT/ is a model directory plus golden.json as make_golden.py describes it, and where the directory has a
tokenizer.json also
    texts     [[text, [id, ...]], ...] by the tokenizers library from that file
config.json of the four named after published families has all fields that those files carry, with small dimensions;
transformers loads each directory and must find the same logits.
"""
import json
import os
import pathlib
import shutil
import struct
import sys

import torch
from make_golden import all_logits, golden, randomize, stored_model, write_golden
from safetensors.torch import save_file
from tokenizer_strings import StringMaker
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel

TINY_TOKENIZER = pathlib.Path(__file__).resolve().parent.parent / "data" / "tiny_tokenizer"
SUMMARY = dict(summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index",
               summary_use_proj=True)
DROPOUT = dict(attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)
IDS = dict(bos_token_id=50256, eos_token_id=50256)
COMMON = dict(architectures=["GPT2LMHeadModel"], initializer_range=0.02, layer_norm_epsilon=1e-05, model_type="gpt2",
              activation_function="gelu_new", **DROPOUT, **IDS, **SUMMARY)
TINY = dict(n_embd=12, n_head=3, n_layer=2, n_positions=32, vocab_size=47)
SMALL_VOCABULARY = dict(TINY, model_type="gpt2", n_embd=8, n_head=2, vocab_size=600)

# name -> (note, config.json, how the weights are stored, how the tokenizer is)
VARIANTS = {
    "distilgpt2": ("fields of distilgpt2", dict(
        COMMON, _num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, n_ctx=32,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, **TINY), "old_buffers", None),
    "dialogpt": ("fields of DialoGPT", dict(
        COMMON, n_ctx=32, n_special=0, predict_special_tokens=True,
        task_specific_params={"conversational": {"max_length": 1000}}, **TINY), "empty_buffers", None),
    "cerebras_gpt": ("fields of Cerebras-GPT", dict(
        COMMON, activation_function="gelu", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, n_inner=48,
        reorder_and_upcast_attn=False, scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True,
        torch_dtype="float32", transformers_version="4.25.1", use_cache=True, **TINY), "plain", None),
    "mistral_gpt2": ("fields of stanford-crfm's Mistral GPT-2", dict(
        COMMON, gradient_checkpointing=False, n_ctx=32, n_inner=None, reorder_and_upcast_attn=True,
        scale_attn_by_inverse_layer_idx=True, scale_attn_weights=True, torch_dtype="float32",
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
        transformers_version="4.12.0.dev0", use_cache=False, **dict(TINY, n_layer=3)), "unprefixed_buffers", None),
    "odd_alignment": ("data that begins at an odd byte, tensors in no order, a bool buffer of odd length before them",
                      dict(TINY, model_type="gpt2"), "odd_alignment", None),
    "shards": ("one tensor or a few per shard, float16", dict(TINY, model_type="gpt2", torch_dtype="float16"), "shards",
               None),
    "tokenizer_json": ("tokenizer.json alone, merges as strings", SMALL_VOCABULARY, "float16", "strings"),
    "tokenizer_json_pairs": ("tokenizer.json alone as later versions of tokenizers write it, merges as pairs",
                             SMALL_VOCABULARY, "float16", "pairs"),
}


def buffers(config, storage):
    """The masks of old checkpoints: on all dtypes that were seen, and some that were not."""
    n = config.n_positions
    mask = torch.tril(torch.ones((n, n))).view(1, 1, n, n)
    prefix = "" if storage == "unprefixed_buffers" else "transformer."
    result = {}
    for block in range(config.n_layer):
        dtype = [torch.uint8, torch.bool, torch.float32, torch.int64][(block + (storage == "unprefixed_buffers")) % 4]
        fill = torch.tensor(-1e4, dtype=[torch.float64, torch.float32][block % 2])
        result[f"{prefix}h.{block}.attn.bias"] = mask.to(dtype)
        result[f"{prefix}h.{block}.attn.masked_bias"] = torch.empty(0) if storage == "empty_buffers" else fill
    return result


def write_oddly(tensors, path):
    """By hand, as the format's description allows and its own library never does."""
    names = sorted(tensors, key=lambda name: name[::-1])
    odd = {"h.0.attn.bias": ("BOOL", [1, 1, 3, 1], b"\1\0\1")}
    header, data = {"__metadata__": {"format": "pt", "note": "caf\u00e9 \"quoted\""}}, b""
    for name in list(odd) + names:
        dtype, shape, raw = odd.get(name) or ("F32", list(tensors[name].shape), tensors[name].numpy().tobytes())
        header[name] = {"shape": shape, "data_offsets": [len(data), len(data) + len(raw)], "dtype": dtype}
        data += raw
    text = json.dumps(header, indent=1, ensure_ascii=False).encode()
    text += b" " * (1 - len(text) % 2)
    assert (8 + len(text)) % 2 == 1
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def save(model, config, directory, storage):
    path = os.path.join(directory, "model.safetensors")
    plain = {name: value.contiguous() for name, value in model.state_dict().items()
             if name != "lm_head.weight" and not name.endswith((".attn.bias", ".attn.masked_bias"))}
    if storage == "shards":
        model.half().save_pretrained(directory, max_shard_size="3KB")
        for extra in ["generation_config.json", "config.json"]:
            os.remove(os.path.join(directory, extra))
    elif storage == "odd_alignment":
        write_oddly({name.removeprefix("transformer."): value for name, value in plain.items()}, path)
    elif storage == "float16":
        save_file({name: value.half() for name, value in plain.items()}, path, metadata={"format": "pt"})
    elif storage == "plain":
        save_file(plain, path, metadata={"format": "pt"})
    else:
        if storage == "unprefixed_buffers":
            plain = {name.removeprefix("transformer."): value for name, value in plain.items()}
        save_file({**plain, **buffers(config, storage)}, path, metadata={"format": "pt"})


def save_tokenizer(directory, style):
    """GPT-2's tokenizer over the vocabulary of tests/data/tiny_tokenizer; returns texts and their ids."""
    tokenizer = Tokenizer(models.BPE.from_file(str(TINY_TOKENIZER / "vocab.json"), str(TINY_TOKENIZER / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=True)])
    path = os.path.join(directory, "tokenizer.json")
    tokenizer.save(path)
    root = json.load(open(path))
    if style == "pairs":
        root["model"]["merges"] = [merge.split(" ") for merge in root["model"]["merges"]]
        root["model"]["ignore_merges"] = False
        root["post_processor"] = {"type": "Sequence", "processors": [root["post_processor"]]}
    else:  # as in the first published files
        del root["pre_tokenizer"]["use_regex"], root["model"]["byte_fallback"], root["model"]["type"]
    json.dump(root, open(path, "w"), ensure_ascii=False)
    maker = StringMaker(7)
    strings = ["", "<|endoftext|>", "a<|endoftext|> b <|endoftext|>"] + [maker.string() for _ in range(60)]
    return [[text, tokenizer.encode(text).ids] for text in strings]


def check(directory, result):
    """Hugging Face's own float32 result from the directory as it is."""
    if not any(name.startswith("model") and name.endswith(".safetensors") for name in os.listdir(directory)):
        raise SystemExit(f"{directory}: no weights")
    model = GPT2LMHeadModel.from_pretrained(directory).eval().float()
    for ids, rows in zip(result["prompts"], result["logits"]):
        difference = all_logits(model, ids)[-1].double() - torch.tensor(rows[-1], dtype=torch.float64)
        assert difference.abs().max() < 1e-3, difference.abs().max()


def make(root, name):
    note, fields, storage, style = VARIANTS[name]
    directory = os.path.join(root, name)
    for seed in range(1, 1000):
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        generator = torch.Generator().manual_seed(seed)
        config = GPT2Config(**fields)
        model = GPT2LMHeadModel(config).eval()
        randomize(model, generator)
        save(model, config, directory, storage)
        model = stored_model(directory, config)
        model.eval()
        result = golden(model, config, [1, 5, 12] if config.vocab_size < 100 else [6], generator)
        if result is not None:
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear and varied continuations")
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(fields, file, indent=2)
        file.write("\n")
    check(directory, result)
    if style:
        result["texts"] = save_tokenizer(directory, style)
    if config.vocab_size > 100:
        result["logits"] = [rows[-2:] for rows in result["logits"]]
    write_golden(directory, note, seed, result)
    print(f"{name}: seed {seed}, smallest margin {min(min(m) for m in result['margins']):.3f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: make_interop.py DIRECTORY [VARIANT...]")
    for variant in sys.argv[2:] or VARIANTS:
        make(sys.argv[1], variant)
