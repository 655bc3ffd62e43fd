#include "runtime/tokenizer_json.hpp"

#include <fmt/format.h>

#include <optional>

#include "partition/wording.hpp"
#include "runtime/json.hpp"
#include "runtime/results.hpp"
#include "runtime/vocabulary.hpp"

namespace stagecoach {
namespace {

class Reader {
 public:
  Reader(const Json& root, const std::string& name) : root_(root), name_(name) {}

  TokenizerTexts texts() const {
    if (root_.object() == nullptr) {
      throw TokenizerError(fmt::format("{}: holds {}, expected an object with model, pre_tokenizer and so on", name_,
                                       root_.type_name()));
    }
    check_surroundings();
    const Json* model = root_.find("model");
    if (model == nullptr || model->object() == nullptr) fail("model", "is missing or no object");
    check_model(*model);
    return {vocab(*model), merges(*model)};
  }

 private:
  [[noreturn]] void fail(std::string_view field, std::string_view what) const {
    throw TokenizerError(fmt::format("{}: {}: {}", name_, field, what));
  }

  // The member `key`, null when it is absent.
  static const Json& member(const Json& object, std::string_view key) {
    static const Json kNull;
    const Json* value = object.find(key);
    return value != nullptr ? *value : kNull;
  }

  // "ByteLevel" of {"type": "ByteLevel", ...}, or of a sequence with nothing else.
  const Json& only_part(const Json& value, std::string_view list, std::string_view field) const {
    if (value.is_null() || type_of(value) != "Sequence") return value;
    const Json::Array* parts = member(value, list).array();
    if (parts == nullptr || parts->size() != 1) fail(field, "is a sequence; supported is ByteLevel alone");
    return parts->front();
  }
  static std::string type_of(const Json& value) {
    const std::string* type = member(value, "type").string();
    return type != nullptr ? *type : value.type_name();
  }

  void check_surroundings() const {
    if (const Json& normalizer = member(root_, "normalizer"); !normalizer.is_null()) {
      fail("normalizer",
           fmt::format("is {}; supported are tokenizers without one, as GPT-2's", printable(type_of(normalizer))));
    }
    const Json& pre = only_part(member(root_, "pre_tokenizer"), "pretokenizers", "pre_tokenizer");
    require_byte_level(pre, "pre_tokenizer");
    require_flag(pre, "pre_tokenizer", "add_prefix_space", false, true);
    require_flag(pre, "pre_tokenizer", "use_regex", true, true);
    require_byte_level(only_part(member(root_, "decoder"), "decoders", "decoder"), "decoder");
    check_post_processor(member(root_, "post_processor"));
  }

  void require_byte_level(const Json& value, const char* field) const {
    if (type_of(value) != "ByteLevel") {
      fail(field, fmt::format("is {}; supported is ByteLevel, as GPT-2's", printable(type_of(value))));
    }
  }

  void require_flag(const Json& object, std::string_view place, std::string_view key, bool wanted,
                    bool when_absent) const {
    const Json* value = object.find(key);
    const bool* flag = value != nullptr ? value->boolean() : &when_absent;
    if (flag == nullptr || *flag != wanted) {
      fail(fmt::format("{}.{}", place, key),
           fmt::format("is {}; supported is {}", value != nullptr ? shown(*value) : "missing", wanted));
    }
  }

  // Only what leaves the tokens of one text as they are.
  void check_post_processor(const Json& value) const {
    constexpr const char* kField = "post_processor";
    if (value.is_null()) return;
    const std::string type = type_of(value);
    if (type == "ByteLevel") return;  // moves offsets, not tokens
    if (type == "Sequence") {
      const Json::Array* parts = member(value, "processors").array();
      if (parts == nullptr) fail(kField, "is a sequence without processors");
      for (const Json& part : *parts) check_post_processor(part);
      return;
    }
    if (type == "TemplateProcessing") {
      const Json::Array* pieces = member(value, "single").array();
      if (pieces != nullptr && pieces->size() == 1 && pieces->front().find("Sequence") != nullptr) return;
    }
    fail(kField,
         fmt::format("is a {} that adds tokens to the text's; supported is ByteLevel or none", printable(type)));
  }

  void check_model(const Json& model) const {
    if (const Json& type = member(model, "type"); !type.is_null() && type_of(model) != "BPE") {
      fail("model.type", fmt::format("is {}; supported is \"BPE\"", shown(type)));
    }
    if (const Json& dropout = member(model, "dropout"); !dropout.is_null()) {
      const bool zero = (dropout.real() != nullptr && *dropout.real() == 0.0) ||
                        (dropout.integer() != nullptr && *dropout.integer() == 0);
      if (!zero) fail("model.dropout", fmt::format("is {}; supported is null", shown(dropout)));
    }
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json& value = member(model, affix);
      if (value.is_null() || (value.string() != nullptr && value.string()->empty())) continue;
      fail(fmt::format("model.{}", affix), fmt::format("is {}; supported is an empty one", shown(value)));
    }
    require_flag(model, "model", "byte_fallback", false, false);
    require_flag(model, "model", "ignore_merges", false, false);
  }

  // <|endoftext|> is the one added token that a Tokenizer finds in texts, and it does so whenever the vocabulary has
  // it.
  std::string vocab(const Json& model) const {
    const Json::Object* tokens = member(model, "vocab").object();
    if (tokens == nullptr) fail("model.vocab", "is missing or no object from tokens to ids");
    const std::optional<std::int64_t> added = end_of_text_id();
    bool listed = false;
    std::string text = "{";
    const auto add = [&text](std::string_view token, std::int64_t id) {
      if (text.size() > 1) text += ", ";
      text += fmt::format("{}: {}", json_string(token), id);
    };
    for (const auto& [token, value] : *tokens) {
      const std::int64_t* id = value.integer();
      if (id == nullptr) {
        fail("model.vocab", fmt::format("the token \"{}\" has {} for an id", printable(token), shown(value)));
      }
      if (token == kEndOfText) {
        listed = true;
        if (added != *id) {
          fail("added_tokens",
               added ? fmt::format("{} has the id {}, but {} in model.vocab", kEndOfText, *added, *id)
                     : fmt::format("lacks {}, which model.vocab has; add it with the id {}", kEndOfText, *id));
        }
      }
      add(token, *id);
    }
    if (added && !listed) add(kEndOfText, *added);
    return text + "}";
  }

  std::optional<std::int64_t> end_of_text_id() const {
    constexpr const char* kField = "added_tokens";
    const Json& list = member(root_, kField);
    std::optional<std::int64_t> result;
    if (list.is_null()) return result;
    if (list.array() == nullptr) fail(kField, fmt::format("is {}, expected a list", list.type_name()));
    for (const Json& token : *list.array()) {
      const std::string* content = member(token, "content").string();
      const std::int64_t* id = member(token, "id").integer();
      if (content == nullptr || id == nullptr) fail(kField, "holds what has no content and id");
      if (*content != kEndOfText) {
        fail(kField,
             fmt::format("\"{}\" (id {}) would be found in texts; supported is {} alone: remove it from the list "
                         "if no prompt holds it",
                         printable(*content), *id, kEndOfText));
      }
      if (result) fail(kField, fmt::format("{} is there twice", kEndOfText));
      for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
        require_flag(token, fmt::format("{}: {}", kField, kEndOfText), flag, false, false);
      }
      result = *id;
    }
    return result;
  }

  std::string merges(const Json& model) const {
    constexpr const char* kField = "model.merges";
    const Json::Array* list = member(model, "merges").array();
    if (list == nullptr) fail(kField, "is missing or no list");
    std::string text = "#version: 0.2\n";
    for (std::size_t i = 0; i < list->size(); ++i) {
      const std::string line = merge_line((*list)[i]);
      // One space, which splits it, and no line break; a "#version" line would be passed over.
      const std::size_t space = line.find(' ');
      const bool good = space != std::string::npos && line.find(' ', space + 1) == std::string::npos &&
                        line.find_first_of("\r\n") == std::string::npos && !line.starts_with("#version");
      if (!good)
        fail(kField, fmt::format("number {} (\"{}\") is not two tokens of a byte-level BPE", i + 1, printable(line)));
      text += line;
      text += '\n';
    }
    return text;
  }

  static std::string merge_line(const Json& merge) {
    if (const std::string* line = merge.string()) return *line;
    const Json::Array* pair = merge.array();
    if (pair == nullptr || pair->size() != 2) return "";
    const std::string* left = pair->front().string();
    const std::string* right = pair->back().string();
    return left != nullptr && right != nullptr ? *left + " " + *right : "";
  }

  const Json& root_;
  const std::string& name_;
};

}  // namespace

TokenizerTexts texts_of_tokenizer_json(std::string_view json, const std::string& name) {
  try {
    const Json root = parse_json(json);
    return Reader(root, name).texts();
  } catch (const JsonError& error) {
    throw TokenizerError(fmt::format("{}: {}", name, error.what()));
  }
}

}  // namespace stagecoach
