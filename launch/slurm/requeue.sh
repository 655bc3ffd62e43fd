# The end of a batch job: until_done OUTPUT COMMAND... runs the command, which makes OUTPUT, and ends the job. One that was
# stopped before it was done (time limit, lost node, preemption, failure) is queued again and goes on where it was; one that
# is done, or that no repetition helps, ends.
until_done() {
  local output=$1 status
  for _ in 1 2 3; do
    "${@:2}"
    status=$?
    [[ $status == 0 && ! -e $output ]] || go_on "$status"
    # Slurm 22.05: when a step cannot start, as after a crash of the daemon that watched the last one, srun ends with 0.
    # The next step of the job has another name, and starts.
    echo "stagecoach: $2 ended with status 0 but $output is not there, so the ranks did not start; trying again" >&2
    sleep 1
  done
  go_on 1
}
# go_on STATUS: with that of srun.
go_on() {
  local status=$1 most=${STAGECOACH_MOST_RESTARTS:-20} job=$SLURM_JOB_ID state
  case $status in
    0 | 2 | 3) exit "$status" ;;  # done, wrong usage or input, does not fit in memory
  esac
  [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  # Not when Slurm is ending the job itself: cancelled jobs stay so, and preempted ones come back without this.
  state=$(squeue --noheader --format=%T --jobs="$job")
  [[ $state == RUNNING || $state == SIGNALING ]] || exit "$status"
  if ((${SLURM_RESTART_COUNT:-0} >= most)); then
    echo "stagecoach: status $status after $most restarts, so not queued again; what is finished is kept for the same command" >&2
    exit "$status"
  fi
  echo "stagecoach: status $status; queued again (restart $((${SLURM_RESTART_COUNT:-0} + 1)) of at most $most)" >&2
  scontrol requeue "$job"
  exit "$status"
}
trap : TERM  # also sent to this shell when the job is ended: srun is to end first, with its ranks
