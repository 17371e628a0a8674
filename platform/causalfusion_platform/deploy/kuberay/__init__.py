"""Kubernetes with the KubeRay operator: a RayJob for a run, a RayCluster with an autoscaler for a sweep.

Open `render.py` first. `pods.py` makes the pods, `network_policies.py` says who talks to whom, `mlflow.py` deploys
MLflow, and `rules.py` finds the faults of rendered or edited files. Pods pass the Pod Security level "restricted".
"""
