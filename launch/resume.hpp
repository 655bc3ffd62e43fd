// Jobs that go on where they were killed: which job it is, and its journal.
#pragma once

#include "launch/prompt_job.hpp"

namespace stagecoach {

// Opens the journal of a job whose results go to a file; the prompts are open. On rank 0. False when the results are
// there already. Waits while another run has the journal. Throws UsageError when the journal there is of another job.
bool open_journal(PromptJob& job, const Options& options, const Session& session);

}  // namespace stagecoach
