#!/usr/bin/env python3
"""Makes tests/data/tiny_tokenizer: a vocabulary of 600 tokens, and golden files that the unit tests read.

  vocab.json, merges.txt  trained here on the text below, numbered as GPT-2's: bytes, merges, <|endoftext|>
  encode.txt              per line: UTF-8 of a random string in hex, a tab, Hugging Face's ids
  decode.txt              per line: random bytes in hex, a tab, hex of Python's bytes.decode("utf-8", "replace")

Needs `tokenizers`. The result depends on nothing but this folder and the version of that package, which decides only
ties in training: the vocabulary is kept when it is there already, unless --retrain.
"""

import argparse
import json
import pathlib
import random

from tokenizer_strings import CONTRACTIONS, END_OF_TEXT, WORDS, StringMaker, hugging_face_tokenizer

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "data" / "tiny_tokenizer"
VOCABULARY_SIZE = 600

TEXT = """
The stagecoach left the town before the sun was over the hills, and the driver counted the stations on his fingers.
At every station the horses were changed while the passengers stretched their legs; nobody had to wait for the others,
because the next team was always standing ready. "We're never late," he'd say, "and if we are, it's the river's fault."
They didn't believe him, but they'd paid, so they'll travel as far as the road goes: 12 miles, 24 miles, 48 miles.

A pipeline of stages works in the same way. Each stage holds some of the blocks of the model, takes what the stage before
has made, and hands its own result to the stage behind. When there is only one passenger the stages wait for each other;
when there are many, all of them have something to do. That's why the number of microbatches should not be smaller than
the number of stages, and why I've never seen a good schedule that wasn't simple. 1999, 2000, 2024: 3.14159 and 2.71828.

Die Kutsche fährt über die Brücke, und die Straße wird schmaler. La diligence s'arrête à l'auberge, où l'on dîne.
Το ταξίδι συνεχίζεται. Дилижанс едет дальше, и дорога становится длиннее. 馬車は町を出て、山を越えて行く。
for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; }    // four spaces, then a comment
"""


def train():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY_SIZE - 1, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT, " ".join(WORDS), " we".join(CONTRACTIONS)] * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    assert list(vocabulary.values()) == list(range(VOCABULARY_SIZE - 1))
    vocabulary[END_OF_TEXT] = VOCABULARY_SIZE - 1
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (FOLDER / "vocab.json").write_text(json.dumps(vocabulary))
    (FOLDER / "merges.txt").write_text("#version: 0.2\n" + "".join(merge + "\n" for merge in merges))


def random_bytes(draw):
    """Mostly almost-UTF-8: characters cut short, stray continuations, forbidden lead bytes."""
    out = b""
    for _ in range(draw.randint(1, 6)):
        kind = draw.randrange(4)
        if kind == 0:
            out += bytes(draw.randrange(256) for _ in range(draw.randint(1, 4)))
        elif kind == 1:
            out += draw.choice("aé€😀\U0010ffff\ud7ff\ue000").encode()
        elif kind == 2:
            out += draw.choice("é€😀\U0010ffff\U00010000").encode()[:draw.randint(1, 3)]
        else:
            out += bytes([draw.choice([0xC0, 0xC1, 0xC2, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF]),
                          draw.choice([0x20, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0]), 0xBF])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrain", action="store_true", help="train the vocabulary again")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if arguments.retrain or not (FOLDER / "merges.txt").exists():
        train()

    tokenizer = hugging_face_tokenizer(FOLDER / "vocab.json", FOLDER / "merges.txt")
    maker = StringMaker(seed=20)
    strings = [""] + [maker.string(pieces=4) for _ in range(2000)]
    with open(FOLDER / "encode.txt", "w") as out:
        for string, encoding in zip(strings, tokenizer.encode_batch(strings)):
            out.write(f"{string.encode().hex()}\t{' '.join(map(str, encoding.ids))}\n")

    draw = random.Random(21)
    with open(FOLDER / "decode.txt", "w") as out:
        for _ in range(1000):
            broken = random_bytes(draw)
            out.write(f"{broken.hex()}\t{broken.decode('utf-8', 'replace').encode().hex()}\n")


if __name__ == "__main__":
    main()
