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

Place Streams::enqueue(std::uint64_t id, std::function<void()> run, std::vector<Place> places,
                       std::function<bool()> ready) {
  Stream& stream = streams_.at(id);
  if (stream.blocking) {
    for (const auto& [other_id, other] : streams_) {
      const bool ordered =
          other_id != id && other.device == stream.device && other.blocking && (other.is_default || stream.is_default);
      if (ordered && other.done < other.queued) places.push_back({other_id, other.queued});
    }
  }
  stream.operations.push_back({std::move(run), std::move(places), std::move(ready)});
  return {id, ++stream.queued};
}

Place Streams::end(std::uint64_t stream) const {
  return {stream, streams_.at(stream).queued};
}

bool Streams::reached(const Place& place) const {
  const auto found = streams_.find(place.stream);
  return found == streams_.end() || found->second.done >= place.count;
}

bool Streams::try_one(std::uint64_t id) {
  const auto found = streams_.find(id);
  if (found == streams_.end() || found->second.operations.empty()) return false;
  Stream& stream = found->second;  // stays: what it needs may empty other streams only
  for (const Place& place : stream.operations.front().after) {
    if (!try_until(place)) return false;
  }
  if (stream.operations.front().ready && !stream.operations.front().ready()) return false;
  const Operation operation = std::move(stream.operations.front());
  operation.run();
  stream.operations.pop_front();
  ++stream.done;
  return true;
}

bool Streams::try_until(const Place& place) {
  while (!reached(place)) {
    if (!try_one(place.stream)) return false;
  }
  return true;
}

void Streams::run_until(const Place& place) {
  while (!try_until(place)) pause_();
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
