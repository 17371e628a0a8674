"""Slurm: one sbatch script, which starts Ray on its nodes, runs the command, and continues it in a new job."""
