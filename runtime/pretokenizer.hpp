#pragma once

// Cuts valid UTF-8 into the pieces that byte-pair merging may not cross, by GPT-2's published pattern
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// with \s as Unicode's White_Space. The pieces follow one another without gaps and together are the text.
// Letters and numbers are those of PCRE2's Unicode tables (Unicode 14 in PCRE2 10.42).
// A PreTokenizer is immutable and may be shared by threads. A PieceCursor belongs to one thread, and refers
// to the PreTokenizer and to the text, which must outlive it.

#include <cstddef>
#include <memory>
#include <string_view>

namespace stagecoach {

enum class UseJit { kWhenAvailable, kNever };

class PreTokenizer {
 public:
  explicit PreTokenizer(UseJit use_jit = UseJit::kWhenAvailable);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;

  bool uses_jit() const;

 private:
  friend class PieceCursor;
  struct Pattern;
  std::unique_ptr<const Pattern> pattern_;
};

class PieceCursor {
 public:
  explicit PieceCursor(const PreTokenizer& pre_tokenizer);
  ~PieceCursor();
  PieceCursor(const PieceCursor&) = delete;
  PieceCursor& operator=(const PieceCursor&) = delete;

  // Begins a new text, which must be valid UTF-8 (not checked here).
  void start(std::string_view utf8);
  // The next piece; empty at the end.
  std::string_view next();

 private:
  std::size_t match_end() const;

  struct MatchData;
  const PreTokenizer::Pattern* pattern_;
  std::unique_ptr<MatchData> match_;
  std::string_view text_;
  std::size_t position_ = 0;
};

}  // namespace stagecoach
