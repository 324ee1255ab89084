#!/bin/bash
# sbatch --export=ALL,COHORT=cohort.csv,STORE=features.zarr,ENCODER=uni docs/clusters/slurm.sh
#SBATCH --job-name=mmap
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
mmap extract "$COHORT" "$STORE" --encoder "$ENCODER" --magnifications "${MAGNIFICATIONS:-20,10,5}" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" ${OPTIONS:-}
