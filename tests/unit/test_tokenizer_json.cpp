// tokenizer.json: the same tokens and merges as the two files, and a refusal by name of what would change them.
#include <doctest/doctest.h>

#include <tuple>

#include "runtime/tokenizer_json.hpp"
#include "runtime/weight_source.hpp"
#include "tests/unit/byte_tokenizer.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// A tokenizer.json of the byte tokenizer; each part can be replaced.
struct Parts {
  std::string model_fields = R"("type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":"",)";
  std::string merges = R"(["a b"])";
  std::string added = R"([{"id":257,"content":"<|endoftext|>","single_word":false,"lstrip":false,"rstrip":false,)"
                      R"("normalized":true,"special":true}])";
  std::string normalizer = "null";
  std::string pre_tokenizer = R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";
  std::string decoder = R"({"type":"ByteLevel"})";
  std::string post_processor = "null";
  std::string vocab = byte_vocab_json();

  std::string json() const {
    return fmt::format(
        R"({{"version":"1.0","truncation":null,"padding":null,"added_tokens":{},"normalizer":{},"pre_tokenizer":{},)"
        R"("post_processor":{},"decoder":{},"model":{{{}"vocab":{},"merges":{}}}}})",
        added, normalizer, pre_tokenizer, post_processor, decoder, model_fields, vocab, merges);
  }
};

std::string error_of(const Parts& parts) {
  return message_of<TokenizerError>([&] {
    const TokenizerTexts texts = texts_of_tokenizer_json(parts.json(), "t.json");
    Tokenizer::from_text({texts.vocab_json, "t.json: model.vocab"}, {texts.merges_txt, "t.json: model.merges"});
  });
}

std::string error_with(std::string Parts::*part, const std::string& value) {
  Parts parts;
  parts.*part = value;
  return error_of(parts);
}

void write_model(const TemporaryDirectory& directory) {
  directory.write("config.json", R"({"n_layer":1,"n_head":1,"n_embd":2,"n_positions":2,"vocab_size":300})");
  ModelConfig config;
  config.n_layer = config.n_head = 1;
  config.n_embd = config.n_positions = 2;
  config.n_inner = 8;
  config.vocab_size = 300;
  directory.write("model.safetensors", safetensors(tensors_of(config)));
}

}  // namespace

TEST_CASE("tokenizer.json: the texts of the two files, in every accepted spelling") {
  const Tokenizer expected = byte_tokenizer();
  const std::string text = "ab a b \"\\\n\t\x01 <|endoftext|>ab\xff";
  std::vector<Parts> all(7);
  all[1].merges = R"([["a","b"]])";
  all[2].model_fields = "";
  all[2].pre_tokenizer = R"({"type":"ByteLevel","add_prefix_space":false})";
  all[3].pre_tokenizer = R"({"type":"Sequence","pretokenizers":[)" + all[0].pre_tokenizer + "]}";
  all[3].decoder = R"({"type":"Sequence","decoders":[{"type":"ByteLevel"}]})";
  all[4].post_processor = R"({"type":"Sequence","processors":[{"type":"ByteLevel","trim_offsets":false}]})";
  all[5].post_processor = R"({"type":"TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}}],"pair":[]})";
  all[6].vocab = all[6].vocab.substr(0, all[6].vocab.find(R"(, "<|endoftext|>")")) + "}";  // only in added_tokens
  for (const Parts& parts : all) {
    CAPTURE(parts.json());
    const TokenizerTexts texts = texts_of_tokenizer_json(parts.json(), "t.json");
    const Tokenizer tokenizer = Tokenizer::from_text(texts.vocab_json, texts.merges_txt, "x");
    CHECK(tokenizer.vocab_size() == 258);
    CHECK(tokenizer.encode(text) == expected.encode(text));
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
    for (std::int32_t id = 0; id < 258; ++id) CHECK(tokenizer.token_bytes(id) == expected.token_bytes(id));
  }
}

TEST_CASE("tokenizer.json: what would give other tokens is refused by name") {
  CHECK(error_of(Parts()).empty());
  const std::vector<std::tuple<std::string Parts::*, std::string, std::string>> cases = {
      {&Parts::normalizer, R"({"type":"NFC"})", "t.json: normalizer: is NFC; supported"},
      {&Parts::pre_tokenizer, R"({"type":"Whitespace"})", "pre_tokenizer: is Whitespace; supported is ByteLevel"},
      {&Parts::pre_tokenizer, "null", "pre_tokenizer: is null"},
      {&Parts::pre_tokenizer, R"({"type":"Sequence","pretokenizers":[{"type":"Digits"},{"type":"ByteLevel"}]})",
       "pre_tokenizer: is a sequence"},
      {&Parts::pre_tokenizer, R"({"type":"ByteLevel","add_prefix_space":true})",
       "pre_tokenizer.add_prefix_space: is true; supported is false"},
      {&Parts::pre_tokenizer, R"({"type":"ByteLevel"})", "pre_tokenizer.add_prefix_space: is missing"},
      {&Parts::pre_tokenizer, R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})",
       "pre_tokenizer.use_regex: is false"},
      {&Parts::decoder, R"({"type":"WordPiece"})", "decoder: is WordPiece"},
      {&Parts::decoder, "null", "decoder: is null"},
      {&Parts::post_processor, R"({"type":"RobertaProcessing"})", "post_processor: is a RobertaProcessing that adds"},
      {&Parts::post_processor, R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}}]})",
       "post_processor: is a TemplateProcessing"},
      {&Parts::model_fields, R"("type":"WordPiece",)", "model.type: is \"WordPiece\"; supported is \"BPE\""},
      {&Parts::model_fields, R"("type":"Unigram",)", "model.type: is \"Unigram\""},
      {&Parts::model_fields, R"("dropout":0.1,)", "model.dropout: is 0.1"},
      {&Parts::model_fields, R"("continuing_subword_prefix":"##",)", "model.continuing_subword_prefix: is \"##\""},
      {&Parts::model_fields, R"("end_of_word_suffix":"</w>",)", "model.end_of_word_suffix: is \"</w>\""},
      {&Parts::model_fields, R"("byte_fallback":true,)", "model.byte_fallback: is true"},
      {&Parts::model_fields, R"("ignore_merges":true,)", "model.ignore_merges: is true"},
      {&Parts::merges, "null", "model.merges: is missing or no list"},
      {&Parts::merges, R"(["a b c"])", "model.merges: number 1 (\"a b c\") is not two tokens"},
      {&Parts::merges, R"([["a","b","c"]])", "model.merges: number 1"},
      {&Parts::merges, R"(["a b",["a "," b"]])", "model.merges: number 2"},
      {&Parts::merges, R"(["#version x"])", "model.merges: number 1"},
      {&Parts::merges, R"(["a c"])",
       "t.json: model.merges:2: the merge 'a c' needs the token 'ac', which t.json: model.vocab"},
      {&Parts::vocab, "[]", "model.vocab: is missing or no object"},
      {&Parts::vocab, R"({"a":1})", "t.json: model.vocab: no token"},
      {&Parts::vocab, R"({"a":"1"})", "model.vocab: the token \"a\" has \"1\" for an id"},
      {&Parts::added, R"([{"id":5,"content":"<|endoftext|>"}])", "added_tokens: <|endoftext|> has the id 5, but 257"},
      {&Parts::added, "[]", "added_tokens: lacks <|endoftext|>"},
      {&Parts::added, R"([{"id":258,"content":"[PAD]"}])", "added_tokens: \"[PAD]\" (id 258) would be found in texts"},
      {&Parts::added, R"([{"id":257,"content":"<|endoftext|>","lstrip":true}])",
       "added_tokens: <|endoftext|>.lstrip: is true"},
  };
  for (const auto& [part, value, says] : cases) {
    const std::string error = error_with(part, value);
    INFO(value << " gives: " << error);
    CHECK(contains(error, says));
  }
  CHECK(contains(message_of<TokenizerError>([] { texts_of_tokenizer_json("[]", "t.json"); }), "t.json: holds a list"));
  CHECK(contains(message_of<TokenizerError>([] { texts_of_tokenizer_json("{", "t.json"); }), "t.json: line 1"));
  CHECK(contains(message_of<TokenizerError>([] { texts_of_tokenizer_json("{}", "t.json"); }), "t.json: pre_tokenizer"));
}

TEST_CASE("tokenizer.json: in a model directory, alone and beside the two files") {
  const TemporaryDirectory directory;
  write_model(directory);
  directory.write("tokenizer.json", Parts().json());
  CHECK(open_model(directory.name()).tokenizer->encode("ab") == std::vector<std::int32_t>{256});
  CHECK(open_tokenizer(directory.name()).vocab_size() == 258);
  REQUIRE(read_tokenizer_texts(directory.name()).has_value());
  CHECK(contains(read_tokenizer_texts(directory.name())->merges_txt, "\na b\n"));
  // One of the two files is not enough to win; both are.
  directory.write("vocab.json", "{");
  CHECK(open_tokenizer(directory.name()).encode("ab") == std::vector<std::int32_t>{256});
  directory.write("vocab.json", byte_vocab_json());
  directory.write("merges.txt", "#version: 0.2\n");
  CHECK(open_model(directory.name()).tokenizer->encode("ab").size() == 2);
  std::filesystem::remove(directory.path() / "merges.txt");
  directory.write("tokenizer.json", "{");
  CHECK(contains(message_of<WeightError>([&] { open_model(directory.name()); }), "/tokenizer.json: line 1"));
  Parts broken;
  broken.normalizer = R"({"type":"Lowercase"})";
  directory.write("tokenizer.json", broken.json());
  for (const auto& open :
       {+[](const std::string& name) { open_model(name); }, +[](const std::string& name) { open_tokenizer(name); },
        +[](const std::string& name) { read_tokenizer_texts(name); }}) {
    CHECK(contains(message_of<WeightError>([&] { open(directory.name()); }),
                   "/tokenizer.json: normalizer: is Lowercase"));
  }
}
