# For job scripts: run a step that is told of the end of its time, and put the job back into the queue then.
#
# SLURM sends SIGTERM to the job script alone (`--signal=B:TERM@60`), which hands it on to the step. That saves and ends;
# `scontrol requeue` starts the same script again, and its `--resume` goes on. A step that fails is not tried again.

run_and_requeue() {
    local told=0 status=0
    "$@" &
    local step=$!
    trap 'told=1; kill -TERM "$step" 2>/dev/null' TERM
    while true; do
        wait "$step"
        status=$?
        kill -0 "$step" 2>/dev/null || break # else the signal has ended the wait, and not the step
    done
    if [ "$told" = 1 ] && [ "$status" != 0 ]; then
        echo "job $SLURM_JOB_ID: its time is up; it goes back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
}
