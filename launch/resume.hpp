// Jobs that go on where they were killed: which job it is, and its journal.
#pragma once

#include <memory>

#include "launch/prompt_job.hpp"

namespace stagecoach {

// Of a job whose results go to a file; the prompts are open. On rank 0. Waits while another run has the journal. Throws
// UsageError when the journal there is of another job.
std::unique_ptr<Journal> open_journal(const PromptJob& job, const Options& options, const Session& session);

}  // namespace stagecoach
