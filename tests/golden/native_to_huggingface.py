#!/usr/bin/env python3
"""Reads a native model file of Stagecoach independently of it and writes a Hugging Face directory.

    native_to_huggingface.py model.h5 DIRECTORY

For people who want the bundled demo model in transformers, and as a check of the format as runtime/native_model.hpp and
kernels/weight_layout.hpp describe it. int8 weights become float32. Needs h5py and numpy; with xxhash installed, every
checksum and `contents` are verified as well. Run by hand.
"""
import json
import os
import struct
import sys

import h5py
import numpy as np

try:
    import xxhash
except ImportError:
    xxhash = None

FIELDS = ["n_layer", "n_head", "n_embd", "n_inner", "n_positions", "vocab_size", "activation_function", "layer_norm_epsilon",
          "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings",
          "eos_token_id"]
# Sign position; exponent position and bits; fraction position and bits.
FLOATS = {(31, 23, 8, 0, 23): ("float32", "F32"), (15, 10, 5, 0, 10): ("float16", "F16"),
          (15, 7, 8, 0, 7): ("bfloat16", "BF16")}


def plain(value):
    """An attribute as bool, int, float or str."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if hasattr(value, "item") else value


def datasets(file):
    found = {}
    file.visititems(lambda name, item: found.update({"/" + name: item}) if isinstance(item, h5py.Dataset) else None)
    return dict(sorted(found.items()))


def is_packed(file, path):
    """Of the files with a layout, all matrices but the position embedding."""
    return "layout" in file.attrs and len(file[path].shape) > 1 and path != "/embedding/wpe.weight"


def stored_bytes(path, file, dataset):
    offset = dataset.id.get_offset()
    assert offset is not None and offset % 4096 == 0, dataset.name
    with open(path, "rb") as raw:
        raw.seek(offset)
        data = raw.read(dataset.id.get_storage_size())
    if xxhash is not None:
        hashed = data
        if is_packed(file, dataset.name):
            size = len(data) // dataset.shape[0]
            panels = [xxhash.xxh3_64_intdigest(data[at:at + size]) for at in range(0, len(data), size)]
            hashed = struct.pack(f"<{len(panels)}Q", *panels)
        assert xxhash.xxh3_64_intdigest(hashed) == int(dataset.attrs["xxh3"]), dataset.name
    return data


def types_of(dataset):
    kind = dataset.id.get_type()
    if isinstance(kind, h5py.h5t.TypeFloatID):
        return FLOATS[kind.get_fields()]
    return ("int8", "I8") if dataset.dtype == np.int8 else ("uint8", "U8")


def rows_of_panels(path, dataset, data, config):
    """Safetensors type, shape and bytes of a packed matrix."""
    embd, inner, vocab = config["n_embd"], config["n_inner"], config["vocab_size"]
    name = path.rsplit("/", 1)[1]
    inputs, outputs = {"wte.weight": (embd, vocab), "lm_head.weight": (embd, vocab), "attn.c_attn.weight": (embd, 3 * embd),
                       "attn.c_proj.weight": (embd, embd), "mlp.c_fc.weight": (embd, inner),
                       "mlp.c_proj.weight": (inner, embd)}[name]
    kind, shown = types_of(dataset)
    if kind == "int8":
        shown = "F32"
        panels = np.zeros((dataset.shape[0], inputs, 64), np.float32)
        bytes_of_panels = np.frombuffer(data, np.uint8).reshape(dataset.shape)
        at = 0
        for first in range(0, inputs, 128):
            count = min(128, inputs - first)
            scales = np.ascontiguousarray(bytes_of_panels[:, at:at + 256]).view("<f4")
            at += 256
            size = (count + count % 2) * 64
            values = np.ascontiguousarray(bytes_of_panels[:, at:at + size]).view(np.int8).reshape(-1, size // 128, 64, 2)
            at += size
            values = values.transpose(0, 1, 3, 2).reshape(-1, size // 64, 64)[:, :count]
            panels[:, first:first + count] = values * scales[:, None, :]
    else:
        panels = np.frombuffer(data, "<u4" if kind == "float32" else "<u2").reshape(-1, inputs, 64)
    matrix = panels.transpose(1, 0, 2).reshape(inputs, -1)[:, :outputs]
    if name in ("wte.weight", "lm_head.weight"):
        matrix = matrix.T
    return shown, list(matrix.shape), np.ascontiguousarray(matrix).tobytes()


def check_contents(file, config, all_datasets):
    def shown(value):
        if isinstance(value, bool):
            return "true" if value else "false"
        return struct.pack(">d", value).hex() if isinstance(value, float) else str(value)

    lines = [f"stagecoach-model {plain(file.attrs['format_version'])}"]
    lines += [f"layout {plain(file.attrs['layout'])}"] if "layout" in file.attrs else []
    lines += [f"{name} {shown(value)}" for name, value in config.items()]
    for path, dataset in all_datasets.items():
        shape = ", ".join(str(size) for size in dataset.shape)
        lines.append(f"{path} {types_of(dataset)[0]} ({shape}) {int(dataset.attrs['xxh3']):016x}")
    text = "".join(line + "\n" for line in lines)
    assert xxhash.xxh3_64_intdigest(text.encode()) == int(file.attrs["contents"]), "contents"


def name_of(path):
    place, _, rest = path[1:].partition("/")
    return "h." + rest.replace("/", ".", 1) if place == "blocks" else rest


def write_safetensors(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def main(source, target):
    os.makedirs(target, exist_ok=True)
    with h5py.File(source, "r") as file:
        assert plain(file.attrs["format"]) == "stagecoach-model"
        version = plain(file.attrs["format_version"])
        assert version == 1 or version == 2 and plain(file.attrs["layout"]) == "panels-64"
        config = {name: plain(file.attrs[name]) for name in FIELDS}
        found = datasets(file)
        if xxhash is not None:
            check_contents(file, config, found)
        tensors = {}
        for path, dataset in found.items():
            data = stored_bytes(source, file, dataset)
            if path.startswith("/tokenizer/"):
                with open(os.path.join(target, os.path.basename(path)), "wb") as out:
                    out.write(data)
            else:
                name = name_of(path)
                tensors[name if name == "lm_head.weight" else "transformer." + name] = (
                    rows_of_panels(path, dataset, data, config) if is_packed(file, path) else
                    (types_of(dataset)[1], list(dataset.shape), data))
    write_safetensors(os.path.join(target, "model.safetensors"), tensors)
    eos = config["eos_token_id"]
    config.update(model_type="gpt2", architectures=["GPT2LMHeadModel"], eos_token_id=None if eos < 0 else eos,
                  bos_token_id=None if eos < 0 else eos)
    with open(os.path.join(target, "config.json"), "w", encoding="utf-8") as out:
        json.dump(config, out, indent=2)
        out.write("\n")
    print(f"{target}: {len(tensors)} tensors, checksums {'verified' if xxhash is not None else 'not verified (no xxhash)'}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
