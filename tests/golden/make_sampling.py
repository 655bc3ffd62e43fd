#!/usr/bin/env python3
"""What Hugging Face's logits processors leave of random logits, for each of many sampling options.

Made with Python 3.11.2, torch 1.13, transformers 4.40.2 and numpy 1.24.2:
    pip install 'transformers==4.40.*' 'numpy<2' torch
    python3 tests/golden/make_sampling.py tests/golden/data_sampling.json
The file is committed; nothing in the build or the tests runs this script.

A list of cases:
    temperature, top_k, top_p, repetition_penalty
    seen           the distinct ids of the tokens so far
    logits         float32
    ids            the tokens that can be drawn, ascending
    probabilities  theirs
The processors run in float64, in the order penalty, temperature, top-k, top-p, each only when it is on (as generate() does).
A case is drawn again when a token is in or out by less than kMargin, so that a float32 rounding cannot matter.
"""
import json
import sys

import torch
from transformers import (LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper,
                          TopPLogitsWarper)

kSeed = 6
kMargin = 1e-5

kCases = 48
# A value that stands twice is drawn twice as often: with small top-k, small top-p or wide logits few tokens are left.
VOCABS = [5, 17, 60, 60, 100, 100, 300, 1500]
TEMPERATURES = [0.3, 0.7, 1.0, 1.3, 2.0]
TOP_KS = ["off", "off", 1, 5, 40, 40, "vocab", "more"]
TOP_PS = [1.0, 1.0, 0.95, 0.95, 0.5, 0.5, 0.1, 0.01]
PENALTIES = [1.0, 1.2, 0.8, 2.0]
SPREADS = [6.0, 1.5, 0.05]  # standard deviation of the logits


def shuffled(values, generator):
    """kCases values, each as often as the others or once more."""
    rounds = [values[i] for _ in range(kCases // len(values) + 1) for i in torch.randperm(len(values), generator=generator)]
    return rounds[:kCases]


def survivors(logits, row, temperature, top_k, top_p, penalty):
    """ids, probabilities, and how far the nearest token was from the other side."""
    processors = LogitsProcessorList()
    if penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    if temperature != 1.0:
        processors.append(TemperatureLogitsWarper(temperature))
    before_k = processors(row, logits.clone())[0]
    if top_k > 0:
        processors.append(TopKLogitsWarper(top_k))
    before_p = processors(row, logits.clone())[0]
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    scores = processors(row, logits.clone())[0]
    assert scores.dtype == torch.float64

    margins = [1.0]
    if 0 < top_k < len(before_k):
        ordered = before_k.sort(descending=True).values
        margins.append((ordered[top_k - 1] - ordered[top_k]).item())
    if top_p < 1.0:
        ordered = before_p.softmax(-1).sort(descending=True).values
        margins.append((ordered.cumsum(-1) - top_p).abs().min().item())
        kept = int((scores > -torch.inf).sum())
        if kept < len(ordered):
            margins.append((ordered[kept - 1] / ordered[kept]).log().item())
    ids = (scores > -torch.inf).nonzero()[:, 0]
    return ids.tolist(), scores.softmax(-1)[ids].tolist(), min(margins)


def nine(values):
    return [float(f"{value:.9g}") for value in values]


def make(generator):
    columns = [shuffled(values, generator) for values in (VOCABS, TEMPERATURES, TOP_KS, TOP_PS, PENALTIES, SPREADS)]
    cases = []
    for vocab, temperature, top_k, top_p, penalty, spread in zip(*columns):
        top_k = {"off": 0, "vocab": vocab, "more": vocab + 3}.get(top_k, top_k)
        for _ in range(1000):
            logits = (spread * torch.randn((1, vocab), generator=generator)).clamp(-20, 20).float()
            length = int(torch.randint(1, 2 * min(vocab, 40), (1,), generator=generator))
            row = torch.randint(0, vocab, (1, length), generator=generator)
            ids, probabilities, margin = survivors(logits.double(), row, temperature, top_k, top_p, penalty)
            if margin >= kMargin:
                break
        else:
            raise SystemExit(f"no clear case for {vocab, temperature, top_k, top_p, penalty, spread}")
        written = nine(logits[0].tolist())
        assert torch.equal(torch.tensor(written, dtype=torch.float32), logits[0])
        cases.append(dict(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty,
                          seen=list(dict.fromkeys(row[0].tolist())), logits=written, ids=ids,
                          probabilities=nine(probabilities)))
    return cases


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make_sampling.py FILE")
    made = make(torch.Generator().manual_seed(kSeed))
    with open(sys.argv[1], "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in made) + "\n]\n")
    for case in made:
        print({key: len(value) if isinstance(value, list) else value for key, value in case.items()})
