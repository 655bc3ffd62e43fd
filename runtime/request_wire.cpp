#include "runtime/request_wire.hpp"

namespace stagecoach {
namespace {

enum RequestFlags : std::uint8_t { kIgnoreEos = 1, kLogprobs = 2 };

void put_numbers(wire::Writer& out, const std::vector<std::int32_t>& numbers) {
  out.put_count(numbers.size());
  for (const std::int32_t number : numbers) out.put(number);
}

std::vector<std::int32_t> read_numbers(wire::Reader& in) {
  std::vector<std::int32_t> numbers(in.count(sizeof(std::int32_t)));
  for (std::int32_t& number : numbers) number = in.i32();
  return numbers;
}

}  // namespace

void put(wire::Writer& out, const SamplingOptions& options) {
  out.put(options.temperature);
  out.put(options.top_k);
  out.put(options.top_p);
  out.put(options.repetition_penalty);
}

SamplingOptions read_sampling_options(wire::Reader& in) {
  SamplingOptions options;
  options.temperature = in.f64();
  options.top_k = in.i32();
  options.top_p = in.f64();
  options.repetition_penalty = in.f64();
  if (!is_valid(options)) throw WireError("sampling options out of range");
  return options;
}

void put(wire::Writer& out, const Request& request) {
  out.put(request.index);
  put_numbers(out, request.tokens);
  out.put(request.max_new_tokens);
  out.put(static_cast<std::uint8_t>((request.ignore_eos ? kIgnoreEos : 0) | (request.logprobs ? kLogprobs : 0)));
  put(out, request.sampling);
  out.put(request.seed);
  out.put(request.num_samples);
  out.put(request.first_sample);
  out.put_count(request.stop.size());
  for (const std::string& stop : request.stop) out.put(std::string_view(stop));
  out.put(request.score_from);
}

Request read_request(wire::Reader& in) {
  Request request;
  request.index = in.i64();
  request.tokens = read_numbers(in);
  request.max_new_tokens = in.i32();
  const std::uint8_t flags = in.u8();
  if (flags > (kIgnoreEos | kLogprobs)) throw WireError("request with unknown flags");
  request.ignore_eos = (flags & kIgnoreEos) != 0;
  request.logprobs = (flags & kLogprobs) != 0;
  request.sampling = read_sampling_options(in);
  request.seed = in.u64();
  request.num_samples = in.i32();
  request.first_sample = in.i32();
  for (std::size_t n = in.count(sizeof(std::uint32_t)); n > 0; --n) request.stop.push_back(in.text());
  request.score_from = in.i32();
  return request;
}

void put(wire::Writer& out, const Sample& sample) {
  out.put(sample.index);
  out.put(sample.sample);
  out.put(sample.prompt_tokens);
  out.put(static_cast<std::uint8_t>(sample.finish));
  out.put(sample.text_bytes);
  put_numbers(out, sample.tokens);
  out.put_count(sample.logprobs.size());
  for (const float logprob : sample.logprobs) out.put(logprob);
}

Sample read_sample(wire::Reader& in) {
  Sample sample;
  sample.index = in.i64();
  sample.sample = in.i32();
  sample.prompt_tokens = in.i32();
  const std::uint8_t finish = in.u8();
  if (finish > static_cast<std::uint8_t>(FinishReason::kStop)) throw WireError("sample ends for no known reason");
  sample.finish = static_cast<FinishReason>(finish);
  sample.text_bytes = in.i64();
  sample.tokens = read_numbers(in);
  sample.logprobs.resize(in.count(sizeof(float)));
  for (float& logprob : sample.logprobs) logprob = in.f32();
  return sample;
}

}  // namespace stagecoach
