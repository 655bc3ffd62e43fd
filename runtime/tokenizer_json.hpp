// tokenizer.json, the one file of the `tokenizers` library, as the two files of a GPT-2 tokenizer: vocab.json and
// merges.txt say all that is left of it once everything else in it is known to be GPT-2's. Reads no files.
//
// Accepted is a model of type "BPE" (or without type, as in early versions) whose merges are a list of "a b" or of
// ["a", "b"], behind a ByteLevel pre-tokenizer with its pattern and without prefix space, decoded by ByteLevel. All
// else that would change tokens is refused by name: normalizers, other pre-tokenizers and decoders, post-processors
// that add tokens, dropout, affixes, byte_fallback, ignore_merges, added tokens but <|endoftext|>. No effect and no
// refusal: unk_token (each byte has a token), truncation and padding (of batches in training), post-processors for
// offsets.
#pragma once

#include <string>
#include <string_view>

#include "runtime/tokenizer.hpp"

namespace stagecoach {

// The same tokens with the same ids, and the merges in their order. Throws TokenizerError "NAME: field: what". Whether
// vocabulary and merges fit together is left to Vocabulary.
TokenizerTexts texts_of_tokenizer_json(std::string_view json, const std::string& name);

}  // namespace stagecoach
