"""Secrets in names and in texts."""

from __future__ import annotations

import pytest

from causalfusion_platform.config.secret_names import is_secret_name, secret_in, without_credentials


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "RAY_AUTH_TOKEN",
        "HF_TOKEN",
        "PGPASSWORD",
        "wandb_api_key",
        "GITHUB_PAT",
        "MY_SECRET",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "MLFLOW_TRACKING_URI",
        "NCCL_SOCKET_IFNAME",
        "PATH",
        "PWD",
        "KEYBOARD",
    ],
)
def test_names_of_other_variables(name: str) -> None:
    assert not is_secret_name(name)


ENVIRON = {
    "MLFLOW_TRACKING_PASSWORD": "hunter2-long",
    "MLFLOW_TRACKING_USERNAME": "anna-long",
    "SHORT_TOKEN": "train",
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tracking.uri=http://me:geheim@host:5000", "address"),
        ("tracking.uri=http://geheim@host", "address"),
        ("tracking.uri=http://:geheim@host", "address"),
        ("tracking.uri=postgresql://me:${oc.env:A}geheim@host", "address"),
        ("description=hunter2-long", "MLFLOW_TRACKING_PASSWORD"),
        ("tracking.uri=http://host:5000/a@b", None),
        ("tracking.uri=http://${oc.env:USER_NAME}:${oc.env:MLFLOW_TRACKING_PASSWORD}@host", None),
        ("description=anna-long", None),
        ("train", None),
        ("user@host: 'a' b://", None),
    ],
)
def test_secrets_in_texts(text: str, found: str | None) -> None:
    secret = secret_in(text, ENVIRON)
    assert secret is None if found is None else found in str(secret)
    assert "geheim" not in str(secret)
    assert "hunter2" not in str(secret)
    if found == "address":
        assert "geheim" not in without_credentials(text)
    elif found is None:
        assert without_credentials(text) == text
