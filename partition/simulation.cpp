#include "partition/simulation.hpp"

#include <algorithm>
#include <deque>
#include <utility>

namespace stagecoach {
namespace {

// A microbatch on its way: when its tokens reach the leader, and whose they are.
struct Returning {
  double at_s = 0.0;
  std::vector<std::int64_t> sequences;
};

class Simulation {
 public:
  Simulation(const SimulatedPipeline& pipeline, const JobShape& job, std::size_t keep)
      : p_(pipeline), job_(job), keep_(keep), free_s_(pipeline.stages.size()), generated_(size(job.sequences)) {
    result_.busy_s.resize(p_.stages.size());
  }

  Prediction run() {
    while (finished_ < job_.sequences) {
      admit();
      const bool room = returning_.size() < size(p_.in_flight);
      // Tokens that came while the leader computed are seen when it is done.
      if (!returning_.empty() && (returning_.front().at_s <= free_s_[0])) {
        take_tokens();
      } else if (!room || !issue()) {
        if (returning_.empty()) break;  // nothing to wait for: cannot happen with sequences left
        free_s_[0] = std::max(free_s_[0], returning_.front().at_s);
        take_tokens();
      }
    }
    return finish();
  }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

  struct Prompt {
    std::int64_t sequence = 0;
    std::int64_t done = 0;
  };

  void admit() {
    while (next_ < job_.sequences && active_ < p_.slots) {
      prompts_.push_back({next_++, 0});
      ++active_;
    }
  }

  // The next microbatch, as the scheduler puts it together: a share of what decodes, and prompt rows. False when there
  // are no rows to send.
  bool issue() {
    MicrobatchWork work;
    std::vector<std::int64_t> answered;
    if (!p_.hold_decode || prompts_.empty()) add_decode(work, answered);
    const bool has_prompt = !prompts_.empty();
    add_prompts(work, answered);
    if (work.rows() == 0) return false;
    work.logits_rows = job_.scored ? work.rows() : static_cast<std::int64_t>(answered.size());
    send(work, std::move(answered), has_prompt);
    return true;
  }

  void add_decode(MicrobatchWork& work, std::vector<std::int64_t>& answered) {
    std::int64_t share = (decoding_ + p_.in_flight - 1) / p_.in_flight;
    for (; share > 0 && !ready_.empty(); --share) {
      const std::int64_t sequence = ready_.front();
      ready_.pop_front();
      ++work.decode_rows;
      work.decode_keys += job_.prompt_tokens + generated_[size(sequence)];
      answered.push_back(sequence);
    }
  }

  void add_prompts(MicrobatchWork& work, std::vector<std::int64_t>& answered) {
    if (prompts_.empty()) return;
    std::int64_t budget = longest_chunk(p_.chunks);
    while (budget > 0 && !prompts_.empty()) {
      Prompt& prompt = prompts_.front();
      const std::int64_t stop = std::min({job_.prompt_tokens, prompt.done + budget, chunk_end(p_.chunks, prompt.done)});
      const std::int64_t rows = stop - prompt.done;
      add_chunk(work, prompt.done, rows);
      budget -= rows;
      prompt.done = stop;
      if (stop < job_.prompt_tokens) return;
      answered.push_back(prompt.sequence);
      ++decoding_;
      prompts_.pop_front();
    }
  }

  // Several prompts in one microbatch count as one chunk that sees as many keys.
  static void add_chunk(MicrobatchWork& work, std::int64_t first, std::int64_t rows) {
    if (work.prompt_rows == 0) {
      work.prompt_rows = rows;
      work.first_position = first;
      return;
    }
    const double keys = work.prompt_keys() + prompt_chunk(first, rows).prompt_keys();
    work.prompt_rows += rows;
    const auto all = static_cast<double>(work.prompt_rows);
    work.first_position = static_cast<std::int64_t>(std::max(0.0, keys / all - (all + 1.0) / 2.0));
  }

  void send(const MicrobatchWork& work, std::vector<std::int64_t> answered, bool has_prompt) {
    const std::int64_t id = result_.microbatches++;
    double at_s = free_s_[0];
    for (std::size_t s = 0; s < p_.stages.size(); ++s) {
      const SimulatedStage& stage = p_.stages[s];
      const double start_s = std::max(at_s, free_s_[s]);
      const double seconds = stage_seconds(p_.model, stage.blocks, stage.speed, work, stage.shards);
      free_s_[s] = start_s + seconds;
      result_.busy_s[s] += seconds;
      if (result_.timeline.size() < keep_) {
        result_.timeline.push_back({static_cast<std::int32_t>(s), id, start_s, free_s_[s], has_prompt});
      }
      const bool last = s + 1 == p_.stages.size();
      // Shards send on side by side.
      if (!last) at_s = free_s_[s] + link_seconds(p_.model, stage.link, largest_part(work.rows(), stage.shards.shards));
      if (last) at_s = free_s_[s] + (s == 0 ? 0.0 : stage.link.latency_s);
    }
    returning_.push_back({at_s, std::move(answered)});
  }

  void take_tokens() {
    const Returning back = std::move(returning_.front());
    returning_.pop_front();
    for (const std::int64_t sequence : back.sequences) {
      std::int64_t& count = generated_[size(sequence)];
      ++tokens_;
      if (++count == 1) {
        if (started_++ == 0) result_.ttft_s = back.at_s;
        if (started_ == job_.sequences) {
          result_.all_prefilled_s = back.at_s;
          tokens_before_ = tokens_;
        }
      }
      if (count >= job_.new_tokens) {
        ++finished_;
        --active_;
        --decoding_;
      } else {
        ready_.push_back(sequence);
      }
    }
    result_.total_s = std::max(result_.total_s, back.at_s);
  }

  Prediction finish() {
    const auto prompts = static_cast<double>(job_.sequences * job_.prompt_tokens);
    if (result_.all_prefilled_s > 0.0) result_.prefill_tokens_per_s = prompts / result_.all_prefilled_s;
    const double rest_s = result_.total_s - result_.all_prefilled_s;
    if (tokens_ > tokens_before_ && rest_s > 0.0) {
      result_.decode_tokens_per_s = static_cast<double>(tokens_ - tokens_before_) / rest_s;
    }
    for (const double busy_s : result_.busy_s) {
      result_.bubble.push_back(result_.total_s > 0.0 ? 1.0 - busy_s / result_.total_s : 0.0);
    }
    return std::move(result_);
  }

  const SimulatedPipeline& p_;
  const JobShape& job_;
  std::size_t keep_;
  std::vector<double> free_s_;  // [stage] when it can begin with something new
  std::deque<Returning> returning_;
  std::deque<Prompt> prompts_;  // with rows left, in order
  std::deque<std::int64_t> ready_;
  std::vector<std::int64_t> generated_;  // [sequence]
  std::int64_t next_ = 0, active_ = 0, decoding_ = 0, started_ = 0, finished_ = 0;
  std::int64_t tokens_ = 0, tokens_before_ = 0;
  Prediction result_;
};

}  // namespace

Prediction simulate(const SimulatedPipeline& pipeline, const JobShape& job, std::size_t keep) {
  return Simulation(pipeline, job, keep).run();
}

double simulate_ttft(const SimulatedPipeline& pipeline, std::int64_t prompt_tokens) {
  return simulate(pipeline, {prompt_tokens, 1, 1}).ttft_s;
}

}  // namespace stagecoach
