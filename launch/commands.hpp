// What each subcommand does, given its options. Collective over the ranks of the job; return the exit status.
#pragma once

#include "launch/command_line.hpp"
#include "launch/world.hpp"

namespace stagecoach {

int run_generate(const Options& options, const World& world);
int run_score(const Options& options, const World& world);
int run_tokenize(const Options& options, const World& world);
int run_convert(const Options& options, const World& world);
int run_bench(const Options& options, const World& world);
int run_plan(const Options& options, const World& world);
int run_profile(const Options& options, const World& world);
int run_slurm(const Options& options, const World& world);

}  // namespace stagecoach
