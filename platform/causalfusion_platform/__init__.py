"""The experiment platform: Ray Train + DeepSpeed, Ray Tune, Ray Data and MLflow around CausalFusion models."""

__version__ = "0.1.0"
