"""Deployment: one typed file describes a cluster, and is rendered for Kubernetes, Ray's cluster launcher, or Slurm.

Nothing here owns a machine. Rendered files are checked here and handed to kubectl, ray or sbatch.
"""
