#include "partition/yaml_tree.hpp"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "partition/model.hpp"
#include "partition/wording.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kMaxDepth = 16;  // a run file needs four levels
constexpr std::size_t kMaxBytes = std::size_t{1} << 20;
constexpr std::size_t kMaxKeys = 256;  // in one group

std::string place(const std::string& path, const YAML::Mark& mark) {
  if (mark.is_null()) return path;
  return fmt::format("{}:{}:{}", path, mark.line + 1, mark.column + 1);
}

// Builds the tree from the parser's events. `open_` are the lists and maps that have not ended; a map in
// `open_` collects keys and values alternately in `items`, so that every value arrives the same way.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const std::string& path) : path_(path) {}

  YamlNode root;

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) throw PlanError(place(path_, mark) + ": a second document; a run file is one");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(make(YamlNode::Kind::kNull, mark, "", anchor));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw PlanError(place(path_, mark) + ": an alias, which run files cannot have; write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = make(YamlNode::Kind::kScalar, mark, tag, anchor);
    node.scalar = value;
    node.quoted = tag == "!";
    add(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    begin(make(YamlNode::Kind::kList, mark, tag, anchor));
  }
  void OnSequenceEnd() override { end(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    begin(make(YamlNode::Kind::kMap, mark, tag, anchor));
  }
  void OnMapEnd() override { end(); }

 private:
  YamlNode make(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) const {
    YamlNode node;
    node.kind = kind;
    node.where = place(path_, mark);
    if (anchor != YAML::NullAnchor) {
      throw PlanError(node.where + ": an anchor, which run files cannot have; leave out the '&' word");
    }
    if (!tag.empty() && tag != "?" && tag != "!") {  // "?" plain, "!" quoted
      throw PlanError(fmt::format("{}: a tag ({}), which run files cannot have; leave it out", node.where, shown(tag)));
    }
    return node;
  }
  void begin(YamlNode node) {
    if (open_.size() >= kMaxDepth) throw PlanError(node.where + ": nested too deeply for a run file");
    open_.push_back(std::move(node));
  }
  void end() {
    YamlNode node = std::move(open_.back());
    open_.pop_back();
    if (node.kind == YamlNode::Kind::kMap) pair_up(node);
    add(std::move(node));
  }
  void add(YamlNode node) {
    if (open_.empty()) {
      root = std::move(node);
    } else {
      open_.back().items.push_back(std::move(node));
    }
  }
  static void pair_up(YamlNode& map) {
    std::vector<YamlNode> alternating = std::move(map.items);
    map.items.clear();
    for (std::size_t i = 0; i + 1 < alternating.size(); i += 2) {
      YamlNode& key = alternating[i];
      YamlNode& value = alternating[i + 1];
      if (key.kind != YamlNode::Kind::kScalar) throw PlanError(key.where + ": a key must be a word");
      for (const YamlNode& earlier : map.keys) {
        if (earlier.scalar == key.scalar) {
          throw PlanError(fmt::format("{}: {}: given twice, first at {}", key.where, shown(key.scalar), earlier.where));
        }
      }
      if (map.keys.size() >= kMaxKeys) throw PlanError(key.where + ": more keys than a run file can have");
      if (value.kind == YamlNode::Kind::kNull) {
        value.where = key.where;  // the parser says where the next thing stands
      }
      map.keys.push_back(std::move(key));
      map.items.push_back(std::move(value));
    }
  }

  const std::string& path_;
  int documents_ = 0;
  std::vector<YamlNode> open_;
};

// Binary data would get far into a YAML parser before anything looks wrong.
void require_text(const std::string& text, const std::string& path) {
  std::size_t line = 1;
  std::size_t line_start = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == '\n') {
      ++line;
      line_start = i + 1;
    } else if ((byte < 0x20 && byte != '\t' && byte != '\r') || byte == 0x7f || byte == 0xfe || byte == 0xff) {
      throw PlanError(fmt::format("{}:{}:{}: byte 0x{:02x}, which no text file has; a run file is YAML in UTF-8", path,
                                  line, i - line_start + 1, byte));
    }
  }
}

}  // namespace

std::string read_yaml_file(const std::string& path, const char* what) {
  errno = 0;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw PlanError(fmt::format("{}: cannot open the {}: {}", shown(path), what, std::strerror(errno)));
  std::string text(kMaxBytes + 1, '\0');  // the byte too many is for parse_yaml to refuse
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad() || (stream.fail() && !stream.eof())) {
    throw PlanError(fmt::format("{}: cannot read the {}: {}", shown(path), what, std::strerror(errno)));
  }
  text.resize(static_cast<std::size_t>(stream.gcount()));
  return text;
}

YamlNode parse_yaml(const std::string& text, const std::string& path) {
  if (text.size() > kMaxBytes) throw PlanError(fmt::format("{}: larger than a run file can be (1 MiB)", path));
  require_text(text, path);
  TreeBuilder builder(path);
  try {
    // Without its last line ends: yaml-cpp sees a missing closing quote only when the text ends right there.
    std::istringstream stream(text.substr(0, text.find_last_not_of(" \t\r\n") + 1));
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    throw PlanError(fmt::format("{}: not YAML: {}", place(path, error.mark), shown(error.msg)));
  }
  return std::move(builder.root);
}

}  // namespace stagecoach
