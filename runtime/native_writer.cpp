// Writing native model files: rows or panels, from rows or panels.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/convert.hpp"
#include "runtime/checksum.hpp"
#include "runtime/hdf5_file.hpp"
#include "runtime/hdf5_tensors.hpp"
#include "runtime/model_config.hpp"
#include "runtime/native_format.hpp"
#include "runtime/native_model.hpp"
#include "runtime/output_file.hpp"
#include "runtime/packed_tensor.hpp"
#include "runtime/results.hpp"
#include "runtime/tensor_pieces.hpp"

namespace stagecoach {
namespace {

using namespace native;

// The dataset of one tensor, filled from its start, and its checksum.
class DatasetFiller {
 public:
  DatasetFiller(H5Writer& writer, std::string path) : writer_(writer), path_(std::move(path)) {}

  void rows(std::int64_t count, std::span<const std::byte> bytes) {
    write(count, bytes);
    hash_.update(bytes);
  }
  void panels(std::int64_t count, std::span<const std::byte> bytes) {
    write(count, bytes);
    const std::size_t each = bytes.size() / static_cast<std::size_t>(count);
    for (; !bytes.empty(); bytes = bytes.subspan(each)) panels_.push_back(xxh3_of(bytes.first(each)));
  }
  const std::string& path() const { return path_; }
  std::uint64_t checksum() const { return panels_.empty() ? hash_.value() : checksum_of_panels(panels_); }

 private:
  void write(std::int64_t count, std::span<const std::byte> bytes) {
    writer_.write(path_, next_, bytes);
    next_ += count;
  }

  H5Writer& writer_;
  std::string path_;
  std::int64_t next_ = 0;
  Xxh3 hash_;
  std::vector<std::uint64_t> panels_;
};

class Conversion {
 public:
  using Progress = std::function<void(std::int64_t, std::int64_t)>;

  Conversion(const Model& model, const NativeOptions& options, const Progress& progress)
      : model_(model), options_(options), progress_(progress), reader_(*model.weights) {
    for (const TensorSpec& spec : tensor_table(model.config)) {
      total_ += stored_bytes(*model.weights, spec);
      if (!packs(spec) && result_dtype(spec) == DType::kInt8) {
        throw WeightError(
            fmt::format("{}: int8 weights are kept in panels, not as rows; choose another --layout", model.name));
      }
    }
  }

  void run(const std::optional<TokenizerTexts>& tokenizer, const std::string& file) {
    H5Writer writer(file);
    const std::vector<TensorSpec> table = tensor_table(model_.config);
    const Json::Object fields = config_fields(model_.config);
    declare(writer, fields, table, tokenizer);
    writer.begin_data();
    if (tokenizer) {
      write_text(writer, kVocab, tokenizer->vocab_json);
      write_text(writer, kMerges, tokenizer->merges_txt);
    }
    for (const TensorSpec& spec : table) write_tensor(writer, spec);
    writer.replace("/", kContents, contents_of(options_.layout, fields, lines_));
    writer.close();
  }

 private:
  bool packs(const TensorSpec& spec) const { return options_.layout == NativeLayout::kPanels && is_matrix(spec); }
  // Beside int8 matrices everything else is as the backends have it.
  DType result_dtype(const TensorSpec& spec) const {
    const DType dtype = options_.dtype.value_or(model_.weights->dtype_of(spec));
    return dtype == DType::kInt8 && !is_matrix(spec) ? DType::kFloat32 : dtype;
  }
  std::vector<std::int64_t> result_shape(const TensorSpec& spec) const {
    return stored_shape(spec, result_dtype(spec), packs(spec));
  }

  void declare(H5Writer& writer, const Json::Object& fields, const std::vector<TensorSpec>& table,
               const std::optional<TokenizerTexts>& tokenizer) const {
    writer.attribute("/", "format", std::string(kFormat));
    writer.attribute("/", kFormatVersion, version_of(options_.layout));
    if (options_.layout == NativeLayout::kPanels) writer.attribute("/", kLayout, std::string(kPackedLayout));
    writer.attribute("/", kContents, std::uint64_t{0});
    for (const auto& [name, value] : fields) {
      if (const std::int64_t* number = value.integer()) writer.attribute("/", name, *number);
      if (const bool* flag = value.boolean()) writer.attribute("/", name, *flag);
      if (const double* real = value.real()) writer.attribute("/", name, *real);
      if (const std::string* word = value.string()) writer.attribute("/", name, *word);
    }
    const auto dataset = [&](const std::string& path, H5Element element, const std::vector<std::int64_t>& shape) {
      writer.dataset(path, element, shape);
      writer.attribute(path, kChecksum, std::uint64_t{0});
    };
    if (tokenizer) {
      dataset(kVocab, H5Element::kUInt8, {static_cast<std::int64_t>(tokenizer->vocab_json.size())});
      dataset(kMerges, H5Element::kUInt8, {static_cast<std::int64_t>(tokenizer->merges_txt.size())});
    }
    for (const TensorSpec& spec : table) dataset(native_path(spec), element_of(result_dtype(spec)), result_shape(spec));
  }

  void finish_dataset(H5Writer& writer, const DatasetFiller& filler, std::string_view type,
                      const std::vector<std::int64_t>& shape) {
    writer.replace(filler.path(), kChecksum, filler.checksum());
    lines_.emplace(filler.path(), line_of(type, shape, filler.checksum()));
  }

  void write_text(H5Writer& writer, const std::string& path, const std::string& text) {
    DatasetFiller filler(writer, path);
    filler.rows(static_cast<std::int64_t>(text.size()), std::as_bytes(std::span(text)));
    finish_dataset(writer, filler, "uint8", {static_cast<std::int64_t>(text.size())});
  }

  void write_tensor(H5Writer& writer, const TensorSpec& spec) {
    DatasetFiller filler(writer, native_path(spec));
    const DType dtype = result_dtype(spec);
    if (model_.weights->is_packed(spec)) {
      packs(spec) ? panels_from_panels(spec, dtype, filler) : rows_from_panels(spec, dtype, filler);
    } else {
      packs(spec) ? panels_from_rows(spec, dtype, filler) : rows_from_rows(spec, dtype, filler);
    }
    finish_dataset(writer, filler, name_of(dtype), result_shape(spec));
  }

  void rows_from_rows(const TensorSpec& spec, DType dtype, DatasetFiller& filler) {
    reader_.read_in_pieces(spec, dtype, [&](std::int64_t, Tensor piece) {
      std::span<const std::byte> bytes(piece.row(0), static_cast<std::size_t>(piece.bytes()));
      if (piece.dtype != dtype) {
        const std::span<std::byte> converted = zeroed(result_, piece.rows * piece.cols * size_of(dtype));
        convert_elements(piece.data, piece.dtype, converted.data(), dtype, piece.rows * piece.cols);
        bytes = converted;
      }
      filler.rows(spec.is_vector ? spec.cols : piece.rows, bytes);
      report(piece.bytes());
    });
  }

  // (out, in) rows come and go by panels; of (in, out) rows every one is part of every panel.
  void panels_from_rows(const TensorSpec& spec, DType dtype, DatasetFiller& filler) {
    const WeightLayout rows = row_layout_of(spec);
    PackedLayout layout = packed_layout_of(spec, dtype);
    const bool whole = rows == WeightLayout::kInOut;
    std::span<std::byte> bytes = whole ? zeroed(result_, layout.bytes()) : std::span<std::byte>();
    reader_.read_in_pieces(spec, dtype, [&](std::int64_t first_row, Tensor piece) {
      if (!whole) {
        layout.out = piece.rows;
        bytes = zeroed(result_, layout.bytes());
      }
      pack_rows({layout, bytes.data()}, rows, whole ? first_row : 0, piece);
      if (!whole) filler.panels(layout.panels(), bytes);
      report(piece.bytes());
    });
    if (whole) filler.panels(layout.panels(), bytes);
  }

  void panels_from_panels(const TensorSpec& spec, DType dtype, DatasetFiller& filler) {
    const PackedLayout to = packed_layout_of(spec, dtype);
    each_panel(spec, dtype, [&](std::int64_t, const PackedMatrix& panel) {
      std::span<const std::byte> bytes(panel.data, static_cast<std::size_t>(panel.layout.panel_bytes()));
      if (panel.layout.dtype != dtype) {
        const std::span<std::byte> converted = zeroed(result_, to.panel_bytes());
        convert_panel(panel.layout, panel.data, dtype, converted.data());
        bytes = converted;
      }
      filler.panels(1, bytes);
    });
  }

  void rows_from_panels(const TensorSpec& spec, DType dtype, DatasetFiller& filler) {
    const PackedLayout layout = packed_layout_of(spec, dtype);
    const WeightLayout order = row_layout_of(spec);
    const bool whole = order == WeightLayout::kInOut;
    const std::span<std::byte> bytes = zeroed(result_, (whole ? layout.out : kPanel) * layout.in * size_of(dtype));
    each_panel(spec, dtype, [&](std::int64_t p, const PackedMatrix& panel) {
      const std::int64_t columns = layout.columns(p);
      if (whole) {
        std::byte* first = bytes.data() + p * kPanel * size_of(dtype);
        return unpack_panel(panel, 0, order, {first, dtype, layout.in, columns, layout.out});
      }
      const Tensor rows = make_tensor(bytes.data(), dtype, columns, layout.in);
      unpack_panel(panel, 0, order, rows);
      filler.rows(columns, bytes.first(static_cast<std::size_t>(rows.bytes())));
    });
    if (whole) filler.rows(layout.in, bytes);
  }

  // use(p, panel p as the first of a matrix), one after the other, checked as `dtype`.
  template <typename Use>
  void each_panel(const TensorSpec& spec, DType dtype, const Use& use) {
    PackedReader reader(*model_.weights, spec, dtype);
    const std::int64_t bytes = reader.layout().panel_bytes();
    const PackedMatrix panel{reader.layout(), zeroed(source_, bytes).data()};
    for (std::int64_t p = 0; p < reader.layout().panels(); ++p) {
      reader.read(p, 1, panel.data);
      use(p, panel);
      report(bytes);
    }
    reader.finish();
  }

  // Bytes of a buffer that grows, aligned to pages from the start (see TensorReader).
  std::span<std::byte> zeroed(Buffer& buffer, std::int64_t bytes) {
    const auto size = static_cast<std::size_t>(bytes);
    if (buffer.bytes() < size) {
      buffer = Buffer();
      buffer = memory_.allocate(std::max<std::int64_t>(bytes, kPieceBytes));
    }
    auto* data = static_cast<std::byte*>(buffer.data());
    std::memset(data, 0, size);
    return {data, size};
  }

  void report(std::int64_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_, total_);
  }

  const Model& model_;
  NativeOptions options_;
  const Progress& progress_;
  TensorReader reader_;
  DatasetLines lines_;
  HostMemory memory_;  // before the buffers
  Buffer source_, result_;
  std::int64_t done_ = 0;
  std::int64_t total_ = 0;
};

}  // namespace

void write_native_model(const Model& model, const std::optional<TokenizerTexts>& tokenizer,
                        const NativeOptions& options, const std::string& file,
                        const std::function<void(std::int64_t, std::int64_t)>& progress) {
  if (options.dtype) require_convertible(model, *options.dtype);
  OutputFile output(file);
  try {
    Conversion(model, options, progress).run(tokenizer, output.partial_path());
  } catch (const Hdf5Error& error) {
    throw OutputError(error.what());
  }
  output.commit();
}

}  // namespace stagecoach
