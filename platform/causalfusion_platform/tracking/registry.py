"""The model registry: weights of runs as versions of a registered model, and aliases. Only safetensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalfusion.weights.folder import CONFIG_FILE, WEIGHTS_FILE, read_object

from ..config.errors import UserError
from ..data.manifest import sha256_of
from .mlflow import answers, client
from .mlflow_calls import one_line

BEST = "best"
WEIGHTS_TAG = "weights.sha256"
ARTIFACT_FOLDER = "weights"
_KINDS = (".safetensors", ".json")


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    model: str
    number: int
    tags: dict[str, str]


def model_name(experiment: str) -> str:
    """Return the name of the registered model of an MLflow experiment, in which MLflow allows neither / nor `:`."""
    return experiment.replace("/", "-").replace(":", "-")


def register_weights(
    uri: str, model: str, run_id: str, weights: Path, *, tags: Mapping[str, str], about: str = ""
) -> Version:
    """Register the weights of a run as a version of a model. The same weights of a run get one version.

    Args:
        uri: tracking URI.
        model: the registered model, created if need be.
        run_id: the run, which gets the files as artifacts.
        weights: folder with model.safetensors and config.json.
        tags: tags of the version.
        about: description of the version.

    Raises:
        UserError: MLflow refuses it.
    """
    digest = sha256_of(weights / WEIGHTS_FILE)
    folder = f"{ARTIFACT_FOLDER}/{digest[:12]}"
    with _registry(uri, model) as api:
        artifacts = api.get_run(run_id).info.artifact_uri
        _make(api, model)
        versions = [
            version
            for version in api.search_model_versions(f"run_id = '{run_id}'")
            if version.name == model and version.tags.get(WEIGHTS_TAG) == digest
        ]
        if not versions:
            for file in sorted(weights.iterdir()):
                if file.suffix in _KINDS:
                    api.log_artifact(run_id, str(file), folder)
            made = api.create_model_version(model, f"{artifacts}/{folder}", run_id, tags={WEIGHTS_TAG: digest})
            download = f"mlflow artifacts download -u 'models:/{model}/{made.version}' -d FOLDER"
            use = f"```\n{download}\n{_use(weights)}\n```"
            api.update_model_version(model, made.version, f"{about}\n\n{use}".strip())
            versions = [made]
        number = int(versions[0].version)
        for key, value in tags.items():
            api.set_model_version_tag(model, str(number), key, value)
    return Version(model, number, {WEIGHTS_TAG: digest, **tags})


def _use(weights: Path) -> str:
    """Return the line that makes something of downloaded weights, by their kind."""
    try:
        architecture = read_object(weights / CONFIG_FILE).get("architecture")
    except (OSError, ValueError):
        architecture = None
    if architecture == "captioner":
        return "causalfusion caption FOLDER IMAGE"
    if architecture == "classifier":
        return "python -c \"from causalfusion.representation import load_finetuned; load_finetuned('FOLDER')\""
    return "causalfusion sample FOLDER"


def version_of(uri: str, model: str, alias: str) -> Version | None:
    """Return the version with an alias of a registered model. None: it does not exist.

    Raises:
        UserError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with _registry(uri, model) as api:
        try:
            number = api.get_registered_model(model).aliases.get(alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if number is None:
            return None
        return Version(model, int(number), dict(api.get_model_version(model, str(number)).tags))


def set_alias(uri: str, version: Version, alias: str) -> None:
    """Set an alias of a registered model to a version.

    Raises:
        UserError: MLflow refuses it.
    """
    with _registry(uri, version.model) as api:
        api.set_registered_model_alias(version.model, alias, str(version.number))


def _make(api: Any, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        api.create_registered_model(model, description="Weights as safetensors, with the model's configuration.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _registry(uri: str, model: str) -> Iterator[Any]:
    """Yield MLflow's client.

    Raises:
        UserError: MLflow failed in the body, or a file could not be read.
    """
    import requests
    from mlflow.exceptions import MlflowException

    if reason := answers(uri):
        raise UserError(f"model {model!r} is not registered: MLflow does not answer at {uri} ({reason})")
    try:
        yield client(uri)
    except (MlflowException, requests.RequestException, OSError) as error:
        raise UserError(f"model {model!r} is not registered: MLflow at {uri} says: {one_line(error)}") from error
