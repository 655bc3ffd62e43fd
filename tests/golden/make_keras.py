#!/usr/bin/env python3
"""Some of make_golden.py's checkpoints as Hugging Face's TensorFlow classes store them: config.json and tf_model.h5.

Made with Python 3.11.7, tensorflow 2.15.1 (keras 2.15.0), h5py 3.16.0, transformers 4.40.2, safetensors 0.8.0 and numpy
1.26.4:
    pip install 'transformers==4.40.*' safetensors 'tensorflow==2.15.*' h5py
    python3 tests/golden/make_keras.py tests/golden/data
The files are committed; nothing in the build or the tests runs this script.

data/keras_VARIANT/ holds the weights of data/VARIANT/model.safetensors, written by TFGPT2LMHeadModel.save_pretrained, and
VARIANT's golden.json with a note of its own. data/keras_no_head/ is base's, written by TFGPT2Model, which has no head.
Keras numbers the models of a process (tfgpt2lm_head_model, tfgpt2lm_head_model_2), and the names in the files show it, as
users' files do. data/keras_published/ has n_inner's tensors under the names that the files published for gpt2 have, which
older versions wrote. Transformers must load each file and find golden.json's logits within kTolerance of each row's
largest.
"""
import json
import os
import shutil
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import h5py
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file
from transformers import GPT2Config, TFGPT2LMHeadModel, TFGPT2Model

kTolerance = 1e-4

# directory -> (the variant whose weights it holds, class that writes them, note)
FIXTURES = {
    "keras_base": ("base", TFGPT2LMHeadModel, "base in a Keras file"),
    "keras_five_layers": ("five_layers", TFGPT2LMHeadModel, "five_layers in a Keras file"),
    "keras_n_inner": ("n_inner", TFGPT2LMHeadModel, "n_inner in a Keras file"),
    "keras_gelu": ("gelu", TFGPT2LMHeadModel, "gelu in a Keras file"),
    "keras_no_head": ("base", TFGPT2Model, "base in a Keras file of the class without a head"),
    "keras_published": ("n_inner", TFGPT2LMHeadModel, "n_inner in a Keras file with the names of the published ones"),
}


def plain_name(name):
    """tf_gpt2lm_head_model/transformer/h_._0/ln_1/gamma:0 -> h.0.ln_1.weight"""
    parts = name.split(":")[0].split("/")
    parts = parts[parts.index("transformer") + 1:]
    last = {"gamma": "weight", "beta": "bias", "embeddings": "weight"}.get(parts[-1], parts[-1])
    return ".".join([part.replace("_._", ".") for part in parts[:-1]] + [last])


def set_weights(model, tensors):
    unused = set(tensors)
    for variable in model.weights:
        name = plain_name(variable.name)
        value = tensors[name].reshape(variable.shape)  # Keras stores biases as (1, n)
        variable.assign(value)
        unused.remove(name)
    assert not unused, unused


def all_logits(model, ids):
    outputs = model(tf.constant([ids]), training=False, use_cache=False)
    if isinstance(model, TFGPT2LMHeadModel):
        return outputs.logits[0].numpy()
    wte = next(variable for variable in model.weights if plain_name(variable.name) == "wte.weight")
    return outputs.last_hidden_state[0].numpy() @ wte.numpy().T


def use_published_names(path):
    with h5py.File(path, "r+") as file:
        layer = file["transformer"]
        (model,) = layer
        layer.move(model, "tfgp_t2lm_head_model")
        layer.move("tfgp_t2lm_head_model/transformer/wte/embeddings:0", "tfgp_t2lm_head_model/transformer/wte/weight:0")
        names = [name.replace(model, "tfgp_t2lm_head_model").replace("wte/embeddings", "wte/weight")
                 for name in layer.attrs["weight_names"]]
        assert all(name in layer for name in names)
        layer.attrs["weight_names"] = names


def check(model, golden):
    worst = 0.0
    for ids, rows in zip(golden["prompts"], golden["logits"], strict=True):
        theirs = np.array(rows)
        worst = max(worst, (np.abs(all_logits(model, ids)[-len(rows):] - theirs) / np.abs(theirs).max(1, keepdims=True)).max())
    assert worst < kTolerance, worst
    return worst


def make(root, name):
    variant, model_class, note = FIXTURES[name]
    source, directory = os.path.join(root, variant), os.path.join(root, name)
    golden_text = open(os.path.join(source, "golden.json")).read()
    golden = json.loads(golden_text)
    config = GPT2Config.from_pretrained(source)
    assert config.tie_word_embeddings
    model = model_class(config)
    model(tf.constant([[0]]))  # makes the variables
    tensors = load_file(os.path.join(source, "model.safetensors"))
    set_weights(model, {key.removeprefix("transformer."): value for key, value in tensors.items()})
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    extra = os.path.join(directory, "generation_config.json")
    if os.path.exists(extra):
        os.remove(extra)
    if name == "keras_published":
        use_published_names(os.path.join(directory, "tf_model.h5"))
    worst = check(model_class.from_pretrained(directory), golden)
    old_note = '"note": %s' % json.dumps(golden["note"])
    assert golden_text.count(old_note) == 1
    with open(os.path.join(directory, "golden.json"), "w") as file:
        file.write(golden_text.replace(old_note, '"note": %s' % json.dumps(note)))
    print(f"{name}: {len(model.weights)} tensors, logits differ by at most {worst:.2g} of a row's largest")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make_keras.py DIRECTORY")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    for fixture in FIXTURES:
        make(sys.argv[1], fixture)
