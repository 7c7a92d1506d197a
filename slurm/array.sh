# The body of embed.sbatch and generate.sbatch, which source it with `command` set: one part of the work of an array, and
# the restarts of its task.

part=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    step=${SLURM_ARRAY_TASK_STEP:-1}
    [ $(((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN) / step + 1)) = "$SLURM_ARRAY_TASK_COUNT" ] ||
        refuse "the array has holes; submit with --array=1-$SLURM_ARRAY_TASK_COUNT"
    part=(--part "$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / step + 1))/$SLURM_ARRAY_TASK_COUNT")
fi

# A start without an end is one that the machine ended, together with this script. The number is this task's own.
attempts=${LCM_CACHE:-${XDG_CACHE_HOME:-~/.cache}/lcm}/jobs/${SLURM_CLUSTER_NAME:-slurm}-$SLURM_JOB_ID.attempts
restarts=${LCM_RESTARTS:-3}
mkdir -p "$(dirname "$attempts")"
[ "${SLURM_RESTART_COUNT:-0}" != 0 ] || : >"$attempts"  # of an earlier job with this number
lost=$(($(grep -c ^start "$attempts" || true) - $(grep -c "^end" "$attempts" || true)))
[ "$lost" -le "$restarts" ] || refuse "the machine ended this task $lost times (LCM_RESTARTS=$restarts); submit it again"
echo start >>"$attempts"

lcm "$command" "$@" "${part[@]}" &
job=$!
again() {
    trap : USR1 TERM
    kill "$job" 2>/dev/null && wait "$job" || true
    echo end >>"$attempts"
    [ "$1" != USR1 ] || scontrol requeue "$SLURM_JOB_ID"  # of this task alone
    exit 143
}
trap 'again USR1' USR1
trap 'again TERM' TERM
status=0
wait "$job" || status=$?
trap - USR1 TERM
if [ "$status" -lt 128 ] && [ "$status" != 75 ]; then  # what was refused once would be refused again
    echo end >>"$attempts"
    exit "$status"
fi
lost=$((lost + 1))
if [ "$lost" -gt "$restarts" ]; then
    say "the machine ended the task again (status $status), no restart of LCM_RESTARTS=$restarts is left; FAILED"
    exit "$status"
fi
say "the machine ended the task (status $status): queued again, restart $lost of $restarts"
scontrol requeue "$SLURM_JOB_ID"
