#include "tests/cuda_emulation/streams.hpp"

#include <utility>

namespace stagecoach::cuda_emulation {

std::uint64_t Streams::add(Stream stream) {
  streams_.emplace(next_id_, std::move(stream));
  return next_id_++;
}
std::uint64_t Streams::create_default(int device) {
  return add({.device = device, .is_default = true});
}
std::uint64_t Streams::create(int device, bool blocking) {
  return add({.device = device, .blocking = blocking});
}

void Streams::destroy(std::uint64_t stream) {
  streams_.at(stream).destroyed = true;
  collect();
}

// Destroyed streams that have nothing left to do; places in streams that are gone count as reached.
void Streams::collect() {
  std::erase_if(streams_, [](const auto& entry) { return entry.second.destroyed && entry.second.operations.empty(); });
}

Place Streams::enqueue(std::uint64_t id, std::function<void()> run, std::vector<Place> places) {
  Stream& stream = streams_.at(id);
  if (stream.blocking) {
    for (const auto& [other_id, other] : streams_) {
      const bool ordered =
          other_id != id && other.device == stream.device && other.blocking && (other.is_default || stream.is_default);
      if (ordered && other.done < other.queued) places.push_back({other_id, other.queued});
    }
  }
  stream.operations.push_back({std::move(run), std::move(places)});
  return {id, ++stream.queued};
}

Place Streams::end(std::uint64_t stream) const {
  return {stream, streams_.at(stream).queued};
}

bool Streams::reached(const Place& place) const {
  const auto found = streams_.find(place.stream);
  return found == streams_.end() || found->second.done >= place.count;
}

void Streams::run_one(std::uint64_t id) {
  Stream& stream = streams_.at(id);  // stays: what it needs may empty other streams only
  if (stream.operations.empty()) return;
  const Operation operation = std::move(stream.operations.front());
  for (const Place& place : operation.after) run_until(place);
  operation.run();
  stream.operations.pop_front();
  ++stream.done;
}

void Streams::run_until(const Place& place) {
  while (!reached(place)) run_one(place.stream);
}

void Streams::run_stream(std::uint64_t stream) {
  run_until(end(stream));
}

void Streams::run_device(int device) {
  std::vector<Place> ends;
  for (const auto& [id, stream] : streams_) {
    if (stream.device == device) ends.push_back({id, stream.queued});
  }
  for (const Place& place : ends) run_until(place);
  collect();
}

}  // namespace stagecoach::cuda_emulation
