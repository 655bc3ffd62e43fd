# The end of a batch job: go_on STATUS, with the status of srun. A job that was stopped before it was done (time limit, lost
# node, preemption, failure) is queued again and goes on where it was; one that is done, or that no repetition helps, ends.
go_on() {
  local status=$1 most=20 job=$SLURM_JOB_ID state
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
