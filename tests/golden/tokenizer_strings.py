"""Random strings that are hard on a GPT-2 tokenizer, and Hugging Face's tokenizer to compare with.

Characters are those that Unicode 14 assigns (Python 3.11's unicodedata); later ones are classified by the tables of
whichever library version one has, so they are no fair test.
"""

import random
import sys
import unicodedata

END_OF_TEXT = "<|endoftext|>"

CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "''s", "'", "\u2019s", "n't", "'sd", "'l"]
WHITE_SPACE = list("\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f"
                   "\u205f\u3000\ufeff") + ["  ", "\r\n", " \n", "   "]
SPECIAL = [END_OF_TEXT, "<|endoftext|", "|endoftext|>", "<|", END_OF_TEXT * 2, " " + END_OF_TEXT, END_OF_TEXT + "\n"]
WORDS = ("the of and pipeline stage Hello WORLD don't we're it'll I'd token tokens stagecoach coach 3.14 1999 2048 "
         "C++20 e.g. http://example.org/a?b=c foo_bar __init__ naïve Straße œuvre façade Ελλάδα Привет мир שלום "
         "مرحبا नमस्ते こんにちは 世界 안녕하세요 ไทย 😀 👩‍👩‍👧 🏳️‍🌈 e\u0301 ½ ² Ⅷ ٣٤ ①").split()


def assigned_characters():
    """Characters by first letter of their general category, without surrogates, private use and unassigned ones."""
    if not unicodedata.unidata_version.startswith("14."):
        print(f"warning: Unicode {unicodedata.unidata_version} and not 14", file=sys.stderr)
    groups = {}
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category not in ("Cn", "Cs", "Co"):
            groups.setdefault(category[0], []).append(chr(code))
    return groups


class StringMaker:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.groups = assigned_characters()
        self.everything = [c for group in self.groups.values() for c in group]
        self.ascii = [chr(code) for code in range(128)]

    def piece(self):
        draw = self.random
        kind = draw.randrange(13)
        if draw.randrange(40) == 0:  # words long enough for the merging of long words
            letters = [draw.choice(WORDS)] if draw.randrange(2) else [chr(97 + draw.randrange(26)) for _ in range(5)]
            return "".join(draw.choice(letters) for _ in range(draw.randint(10, 80)))
        if kind <= 1:
            return draw.choice(WORDS)
        if kind == 2:
            return draw.choice(CONTRACTIONS)
        if kind == 3:
            return draw.choice(WHITE_SPACE) * draw.randint(1, 3)
        if kind == 4:
            return "".join(draw.choice(WHITE_SPACE) for _ in range(draw.randint(1, 4)))
        if kind == 5:
            return "".join(draw.choice(self.ascii) for _ in range(draw.randint(1, 6)))
        if kind == 6:
            return "".join(draw.choice(self.everything) for _ in range(draw.randint(1, 4)))
        if kind == 7:  # one script: neighbours in the code charts
            start = draw.randrange(len(self.everything))
            near = self.everything[start:start + 60]
            return "".join(draw.choice(near) for _ in range(draw.randint(1, 8)))
        if kind == 8:
            group = self.groups[draw.choice("LNMPSZC")]
            return "".join(draw.choice(group) for _ in range(draw.randint(1, 3)))
        if kind == 9:
            return " " * draw.randint(1, 2) + draw.choice(WORDS)
        if kind == 10:
            return draw.choice(SPECIAL) if draw.randrange(3) == 0 else draw.choice(" \n'")
        if kind == 11:
            return draw.choice(self.groups["L"]) + draw.choice(self.groups["M"])
        return "".join(draw.choice("0123456789") for _ in range(draw.randint(1, 5)))

    def string(self, pieces=12):
        return "".join(self.piece() for _ in range(self.random.randint(0, pieces)))


def hugging_face_tokenizer(vocab_json, merges_txt):
    """The pipeline of GPT2TokenizerFast, put together from its parts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocab_json), str(merges_txt)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer
