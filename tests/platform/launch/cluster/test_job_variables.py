"""Variables of jobs: given ones, and secrets that are refused."""

from __future__ import annotations

import pytest

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster.job_variables import given_variables, refuse_secrets

ENVIRON = {
    "NCCL_DEBUG": "INFO",
    "HF_TOKEN": "hf_geheim",
    "URI": "http://me:geheim@host",
    "EMPTY": "",
}


def test_values_come_from_the_option_or_from_here() -> None:
    options = ["A=1=2", "NCCL_DEBUG", "B=", "EMPTY", "A=3", "RAY_JOB_STOP_WAIT_TIME_S=30"]
    assert given_variables(options, ENVIRON) == {
        "A": "3",
        "NCCL_DEBUG": "INFO",
        "B": "",
        "EMPTY": "",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
    }
    assert given_variables([], ENVIRON) == {}


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("HF_TOKEN", "HF_TOKEN is a secret by its name(.|\n)*in a Secret"),
        ("MLFLOW_TRACKING_PASSWORD=geheim", "is a secret by its name"),
        ("URI", "a user or a password in an address"),
        ("A=x hf_geheim", "the value of HF_TOKEN"),
        ("NOT_SET", "not set here\n.*--env NOT_SET=VALUE"),
        ("1A=2", "not the name of a variable"),
        ("=2", "not the name of a variable"),
        ("CAUSALFUSION_HOME=/a", "--home"),
        ("CAUSALFUSION_USER=ben", "your own environment"),
        ("CAUSALFUSION_JOB=x", "--job-id"),
        ("PYTHONPATH=/a", "into the image"),
        ("RAY_ADDRESS=auto", "Ray sets it"),
        ("RAY_JOB_STOP_WAIT_TIME_S=long", "not a number of seconds"),
    ],
)
def test_refused_variables(option: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        given_variables([option], ENVIRON)
    assert "geheim" not in str(refusal.value)


def test_a_command_line_without_secrets_passes() -> None:
    refuse_secrets(["train", "smoke", "tracking.uri=${oc.env:MLFLOW_TRACKING_URI}", "a=http://host:1"], ENVIRON)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("tracking.uri=http://me:geheim@host", "tracking.uri holds a user or a password"),
        ("description=hf_geheim", "description holds the value of HF_TOKEN"),
        ("https://geheim@host/images", "an argument holds a user"),
    ],
)
def test_a_secret_in_the_command_line_is_refused(argument: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        refuse_secrets(["train", argument], ENVIRON)
    assert "geheim" not in str(refusal.value)
    assert "oc.env:" in str(refusal.value)
