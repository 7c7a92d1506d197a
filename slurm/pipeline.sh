#!/usr/bin/env bash
# slurm/pipeline.sh [--test-only]        from the checkout: text → data set → model → report, one job after another
#
# An example to copy and edit. A job starts when the one before it has succeeded; where one fails, those after it are
# cancelled, and mail says so. --test-only asks Slurm whether it would take each of them, and queues nothing.
set -euo pipefail

texts=${TEXTS:-$HOME/texts/*.jsonl}
data=${DATA:-$HOME/data/wiki}
run=${RUN:-$HOME/runs/first}
config=${CONFIG:-configs/two_tower_1.6b.yaml}

everywhere=(
    --mail-type=END,FAIL,REQUEUE          # --mail-user=me@example.org, where the cluster does not know it
    # --account=my_project
    # --partition=gpu
    # --container=$HOME/images/lcm        # an OCI bundle, where the cluster has set up Slurm for it; slurm/env.sh has
)                                         # another way for apptainer
prepare=(--array=1-4 --cpus-per-task=2 --mem=4G --time=12:00:00)            # with GPUs: --gpus=1 (a task each)
train=(--nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --mem=8G --time=24:00:00)  # 8 GPUs: --ntasks-per-node=8 --gpus-per-node=8
evaluate=(--cpus-per-task=2 --mem=4G --time=2:00:00)

[ "${1:-}" != --test-only ] || everywhere+=(--test-only)
cd "$(dirname "$0")/.."

# queue AFTER OPTIONS… SCRIPT WORDS…: prints the job's number. A test's job has none, and nothing waits for it.
queue() {
    local after=$1
    shift
    [ -z "$after" ] || set -- --dependency="afterok:$after" --kill-on-invalid-dep=yes "$@"
    sbatch --parsable "${everywhere[@]}" "$@" | cut -d';' -f1
}

first=$(queue "" "${prepare[@]}" slurm/embed.sbatch --input $texts --output "$data")  # shellcheck disable=SC2086
second=$(queue "$first" "${train[@]}" slurm/train.sbatch "$config" --data.path="$data" --run.dir="$run")
third=$(queue "$second" "${evaluate[@]}" slurm/evaluate.sbatch --model "$run" --data "$data" --output "$run/report")
[ -z "$first" ] || echo "jobs $first (prepare), $second (train), $third (evaluate); lcm runs $run shows the training"
