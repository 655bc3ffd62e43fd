#include "runtime/vocab_json.hpp"

#include "partition/wording.hpp"
#include "runtime/json.hpp"
#include "runtime/tokenizer_error.hpp"

namespace stagecoach {

std::vector<VocabEntry> parse_vocab_json(std::string_view text, const std::string& name) {
  Json root;
  try {
    root = parse_json(text);
  } catch (const JsonError& e) {
    throw TokenizerError(name + ": " + e.what() +
                         "; expected one object {\"token\": id, ...} as in GPT-2's vocab.json");
  }
  const Json::Object* members = root.object();
  if (members == nullptr) {
    throw TokenizerError(name + ": is " + root.type_name() + ", expected one JSON object {\"token\": id, ...}");
  }
  std::vector<VocabEntry> entries;
  entries.reserve(members->size());
  for (const auto& [token, value] : *members) {
    const std::int64_t* id = value.integer();
    if (id == nullptr || *id < 0 || *id > kMaxTokenId) {
      throw TokenizerError(name + ": token '" + shown(token) + "' has the id " +
                           (id == nullptr ? std::string(value.type_name()) : std::to_string(*id)) +
                           ", expected a whole number from 0 to " + std::to_string(kMaxTokenId));
    }
    entries.push_back({token, static_cast<std::int32_t>(*id)});
  }
  return entries;
}

}  // namespace stagecoach
