#!/bin/bash
# Features of all images by 16 tasks of a Slurm array, each on one GPU. Submit it from the root of the project, which
# all nodes see at the same path, after `download` and `weights`:
#
#     job=$(sbatch --parsable examples/slurm/extract.sh)
#     sbatch --dependency="afterok:$job" --wrap "python -m stages extract --merge"
#
# A task that failed or was stopped goes on where it was when the same two lines are given again.
#SBATCH --job-name=extract
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --output=extract-%A-%a.log
#SBATCH --requeue
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?is set by Slurm}"
exec python -m stages extract --shard "${SLURM_ARRAY_TASK_ID:?}/${SLURM_ARRAY_TASK_COUNT:?}"
