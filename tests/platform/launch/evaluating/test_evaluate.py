"""What MLflow is told of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.utils.validation import _validate_metric_name
from tests.platform.sampling.plans import make_plan

from causalfusion import SamplingConfig
from causalfusion_platform.launch.evaluating.evaluate import Evaluated
from causalfusion_platform.launch.evaluating.record import charts


@pytest.mark.parametrize(
    ("sampling", "where"),
    [
        (SamplingConfig(num_ar_steps=4, num_inference_steps=25, guidance_scale=2.5), "S4-T25-cfg2.5"),
        (SamplingConfig(num_ar_steps=2, num_inference_steps=(4, 8), guidance_scale=1.0), "S2-T4_8-cfg1.0"),
        (
            SamplingConfig(
                num_ar_steps=4, num_inference_steps=50, step_schedule="two_stage", last_inference_steps=5
            ),
            "S4-T50-5-two_stage-cfg1.0",
        ),
    ],
)
def test_a_group_of_charts_a_metric(sampling: SamplingConfig, where: str) -> None:
    """A name that MLflow refuses would be set aside without a word on the screen."""
    result = Evaluated(make_plan(sampling=sampling), {"fid": 3.5, "is": 200.0}, Path("x"), True, None)
    found = charts(result)
    assert found == {f"eval/fid/{where}": 3.5, f"eval/is/{where}": 200.0}
    for name in found:
        _validate_metric_name(name)
