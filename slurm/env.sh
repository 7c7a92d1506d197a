# The one file to edit for your cluster: every script of this folder reads it, in the job.
# It must leave `lcm` on the PATH of every node. What sbatch should ask for goes on its command line, or into
# SBATCH_* variables of your shell, such as SBATCH_PARTITION and SBATCH_ACCOUNT.

# module load cuda
source "$LCM_ROOT/.venv/bin/activate"

# export NCCL_SOCKET_IFNAME=ib0        # the network between the nodes, where NCCL does not find it by itself
# export HF_HOME=$SCRATCH/huggingface  # where big caches belong
# A container: put a file `lcm` on the PATH that runs `exec apptainer exec --nv IMAGE.sif lcm "$@"`; PYTHONPATH, by which
# a job finds its copy of the code, and the folders of data and runs must be seen inside.
