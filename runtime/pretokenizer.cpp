#include "runtime/pretokenizer.hpp"

#include "runtime/tokenizer_error.hpp"

#include <array>
#include <cassert>
#include <cstdint>
#include <new>
#include <string>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace stagecoach {
namespace {

// White_Space is spelled out: PCRE2's own \s with UCP also has U+180E, which left that class in Unicode 6.3.
constexpr std::string_view kWhiteSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// The published pattern with possessive repeats where giving back could never help: a word may be megabytes
// long, and a repeat that can give back may need stack or steps per character. The last but one alternative
// has to give back exactly one character: white space before a word leaves its last character to the word.
std::string published_pattern() {
  const std::string space(kWhiteSpace);
  return R"('(?:s|t|re|ve|m|ll|d)| ?+\p{L}++| ?+\p{N}++| ?+[^\p{L}\p{N})" + space + "]++|[" + space + "]+(?![^" +
         space + "])|[" + space + "]++";
}

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

PCRE2_SPTR units(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

bool is_ascii_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Most pieces of most text are " word" in ASCII; finding their end needs no regular expression. Returns 0
// when the piece is of another kind, or when a character follows that only the Unicode tables can classify.
std::size_t ascii_word_length(std::string_view text) {
  std::size_t i = text.front() == ' ' ? 1 : 0;
  const std::size_t first = i;
  while (i < text.size() && is_ascii_letter(text[i])) ++i;
  const bool undecided = i < text.size() && static_cast<unsigned char>(text[i]) >= 0x80;
  return i == first || undecided ? 0 : i;
}

}  // namespace

struct PreTokenizer::Pattern {
  struct Free {
    void operator()(pcre2_code* owned) const noexcept { pcre2_code_free(owned); }
  };
  std::unique_ptr<pcre2_code, Free> code;
  bool jit = false;
};

struct PieceCursor::MatchData {
  struct Free {
    void operator()(pcre2_match_data* owned) const noexcept { pcre2_match_data_free(owned); }
  };
  std::unique_ptr<pcre2_match_data, Free> data;
};

PreTokenizer::PreTokenizer(UseJit use_jit) {
  const std::string text = published_pattern();
  auto pattern = std::make_unique<Pattern>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  pattern->code.reset(pcre2_compile(units(text), text.size(), PCRE2_UTF | PCRE2_ANCHORED, &error, &offset, nullptr));
  if (!pattern->code) {
    throw TokenizerError("this PCRE2 library cannot compile GPT-2's pattern (" + message_of(error) + " at offset " +
                         std::to_string(offset) + "); it must be built with Unicode support");
  }
  // JIT can be missing from the library, or refused by a system that forbids executable memory: only speed is
  // lost.
  pattern->jit = use_jit == UseJit::kWhenAvailable && pcre2_jit_compile(pattern->code.get(), PCRE2_JIT_COMPLETE) == 0;
  pattern_ = std::move(pattern);
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

bool PreTokenizer::uses_jit() const {
  return pattern_->jit;
}

PieceCursor::PieceCursor(const PreTokenizer& pre_tokenizer)
    : pattern_(pre_tokenizer.pattern_.get()), match_(std::make_unique<MatchData>()) {
  match_->data.reset(pcre2_match_data_create(1, nullptr));
  if (!match_->data) throw std::bad_alloc();
}

PieceCursor::~PieceCursor() = default;

void PieceCursor::start(std::string_view utf8) {
  text_ = utf8;
  position_ = 0;
}

std::string_view PieceCursor::next() {
  if (position_ == text_.size()) return {};
  std::size_t length = ascii_word_length(text_.substr(position_));
  if (length == 0) length = match_end() - position_;
  const std::string_view piece = text_.substr(position_, length);
  position_ += length;
  return piece;
}

std::size_t PieceCursor::match_end() const {
  const pcre2_code* code = pattern_->code.get();
  pcre2_match_data* data = match_->data.get();
  int result = PCRE2_ERROR_JIT_STACKLIMIT;
  if (pattern_->jit) result = pcre2_jit_match(code, units(text_), text_.size(), position_, 0, data, nullptr);
  // Without the UTF check, which would read the whole text again for every piece.
  constexpr std::uint32_t kInterpret = PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT;
  if (result < 0) result = pcre2_match(code, units(text_), text_.size(), position_, kInterpret, data, nullptr);
  if (result < 0) {
    throw TokenizerError("PCRE2 failed at byte " + std::to_string(position_) + " of the text: " + message_of(result));
  }
  const std::size_t end = pcre2_get_ovector_pointer(data)[1];
  assert(end > position_ && end <= text_.size());  // the alternatives cover every character
  return end;
}

}  // namespace stagecoach
