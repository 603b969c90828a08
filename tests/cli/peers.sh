#!/bin/bash
# Peers of the run smoke: they share its cells. Written by:
#   dfqbench submit --grid smoke --on digits --bits w4a4,w3a3 --peers 3 --slurm partition=gpu,gres=gpu:1,time=4:00:00 --slurm 'comment=data free,exclusive' --setup '@TMP@/set up.sh'
#SBATCH --job-name=dfqbench-smoke
#SBATCH --array=0-2
#SBATCH --partition=gpu
#SBATCH --gres=gpu:1
#SBATCH --time=4:00:00
#SBATCH --comment='data free'
#SBATCH --exclusive
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=@TMP@/here/results/runs/smoke/slurm/%A_%a.log
cd @TMP@/here || exit 2
. '@TMP@/set up.sh'
@PYTHON@ -m dfqbench run --grid smoke --on digits --bits w4a4,w3a3 --device cuda --out @TMP@/here/results/runs --name smoke --yes &
peer=$! cancelled=
# USR1: the walltime ends. TERM: the job is cancelled, or others need its node. The peer keeps its state.
trap 'kill -USR1 $peer' USR1
trap 'cancelled=1; kill -TERM $peer' TERM
while kill -0 $peer 2>/dev/null; do wait $peer; done  # a signal ends `wait`, not the peer
wait $peer; status=$?
# Status 3: cells are left. After TERM it is SLURM that decides.
if [ $status -eq 3 ] && [ -z "$cancelled" ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ||
    echo "this job cannot queue itself again: give the command at the top of its script again" >&2
fi
exit $status
