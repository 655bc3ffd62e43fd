#!/usr/bin/env python3
"""Log-probabilities of documents under make_golden.py's checkpoints, as Hugging Face's guide to perplexity computes them.

Made with Python 3.11.2, torch 1.13, transformers 4.40.2, safetensors 0.8.0 and numpy 1.24.2, as make_golden.py:
    python3 tests/golden/make_score.py tests/golden/data
The files are committed; nothing in the build or the tests runs this script.

data/VARIANT/score.json, for each directory with safetensors files, holds a list of documents:
    stride    the number of tokens from the start of a window to that of the next; null where one window holds all
    tokens    [id, ...], random
    logprobs  the natural logarithm of each token's probability given those before it in its window; null for the first
Windows start at 0, stride, 2 * stride, ... and hold n_positions tokens, the last one those that are left. A window scores
the tokens that no earlier window scored (https://huggingface.co/docs/transformers/perplexity). Everything is computed in
float64 from the stored weights, and the guide's own loss must agree.
"""
import json
import os
import sys

import torch
from transformers import GPT2Config

from make_golden import stored_model

kSeed = 20


def documents(n):
    """(tokens, stride) for a model of n positions."""
    return [(1, None), (2, None), (n // 2, None), (n, None), (n + 1, n - 1), (n + 7, 3), (5 * n // 2, n - 1),
            (5 * n // 2, n // 2)]


def score(model, ids, stride):
    n = model.config.n_positions
    result = [None]
    if len(ids) == 1:
        return result
    for begin in range(0, len(ids), stride or n):
        end = min(begin + n, len(ids))
        window = torch.tensor([ids[begin:end]])
        first = len(result) - begin  # in the window
        labels = window.clone()
        labels[:, :first] = -100
        with torch.no_grad():
            output = model(window, labels=labels, use_cache=False)
        logprobs = torch.log_softmax(output.logits[0], dim=-1)
        new = [logprobs[i - 1, ids[begin + i]].item() for i in range(first, end - begin)]
        assert abs(output.loss.item() + sum(new) / len(new)) < 1e-12 * max(1.0, output.loss.item())
        result += new
        if end == len(ids):
            break
    assert len(result) == len(ids)
    return result


def make(directory):
    config = GPT2Config.from_pretrained(directory)
    model = stored_model(directory, config)
    generator = torch.Generator().manual_seed(kSeed)
    lines = []
    for length, stride in documents(config.n_positions):
        ids = torch.randint(0, config.vocab_size, (length,), generator=generator).tolist()
        logprobs = [value if value is None else float(f"{value:.9g}") for value in score(model, ids, stride)]
        lines.append(json.dumps(dict(stride=stride, tokens=ids, logprobs=logprobs)))
    with open(os.path.join(directory, "score.json"), "w") as file:
        file.write("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{os.path.basename(directory)}: {len(lines)} documents")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make_score.py DIRECTORY")
    for variant in sorted(os.listdir(sys.argv[1])):
        path = os.path.join(sys.argv[1], variant)
        if any(file.endswith(".safetensors") for file in os.listdir(path)):
            make(path)
