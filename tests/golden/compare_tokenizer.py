#!/usr/bin/env python3
"""Compares token ids with Hugging Face's on fresh random strings. Status 0: all equal; 1: some differ (printed).

  compare_tokenizer.py --encoder BUILD/encode_lines [--vocab vocab.json --merges merges.txt] [--count N] [--seed S]

--characters compares, instead of random strings, every character that Unicode 14 assigns, in contexts that tell
letters, numbers, white space and others apart. --transformers takes the reference from transformers' GPT2TokenizerFast
instead of from the parts that it is made of.
"""

import argparse
import pathlib
import struct
import subprocess
import sys
import time

from tokenizer_strings import StringMaker, assigned_characters, hugging_face_tokenizer

TINY = pathlib.Path(__file__).resolve().parent.parent / "data" / "tiny_tokenizer"
BATCH = 20000


def our_ids(encoder, vocab, merges, strings):
    encoded = [string.encode() for string in strings]
    stdin = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    done = subprocess.run([encoder, vocab, merges], input=stdin, stdout=subprocess.PIPE, check=True)
    lines = done.stdout.decode().split("\n")[:-1]
    if len(lines) != len(strings):
        sys.exit(f"{encoder} answered {len(lines)} lines to {len(strings)} strings")
    return [[int(word) for word in line.split()] for line in lines]


def reference(arguments):
    if not arguments.transformers:
        tokenizer = hugging_face_tokenizer(arguments.vocab, arguments.merges)
        return lambda strings: [encoding.ids for encoding in tokenizer.encode_batch(strings)]
    import json

    import transformers

    if int(transformers.__version__.split(".")[0]) >= 5:  # takes the contents and ignores the file names
        lines = pathlib.Path(arguments.merges).read_text(encoding="utf-8").split("\n")
        files = {"vocab": json.loads(pathlib.Path(arguments.vocab).read_text(encoding="utf-8")),
                 "merges": [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]}
    else:
        files = {"vocab_file": str(arguments.vocab), "merges_file": str(arguments.merges)}
    tokenizer = transformers.GPT2TokenizerFast(**files)
    return lambda strings: tokenizer(strings)["input_ids"] if strings else []


def character_strings():
    characters = [c for group in assigned_characters().values() for c in group]
    return [text for c in characters for text in (c, f"a{c}b {c}1{c} !{c}", f" {c}{c} \n{c} a", f"{c}'s{c}  {c}")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="the program made of encode_lines.cpp")
    parser.add_argument("--vocab", default=TINY / "vocab.json")
    parser.add_argument("--merges", default=TINY / "merges.txt")
    parser.add_argument("--count", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--characters", action="store_true")
    parser.add_argument("--transformers", action="store_true")
    arguments = parser.parse_args()

    expected_ids = reference(arguments)
    maker = StringMaker(arguments.seed)
    strings = character_strings() if arguments.characters else None
    total = len(strings) if strings else arguments.count
    different = ids = 0
    for start in range(0, total, BATCH):
        count = min(BATCH, total - start)
        batch = strings[start:start + count] if strings else [maker.string() for _ in range(count)]
        ours = our_ids(arguments.encoder, arguments.vocab, arguments.merges, batch)
        for string, expected, got in zip(batch, expected_ids(batch), ours):
            ids += len(expected)
            if expected != got:
                different += 1
                if different <= 10:
                    print(f"{ascii(string)}\n  expected {expected}\n  got      {got}")
    print(f"{total} strings, {ids} ids, {different} strings differ (seed {arguments.seed})")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
