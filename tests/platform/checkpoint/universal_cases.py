"""What `test_universal` tries: known to the test and to its processes."""

from __future__ import annotations

from typing import Any

FROM = {1: 2, 2: 1, 4: 2}
"""Number of ranks → of how many the checkpoint is that they load."""
STEPS_BEFORE, STEPS_AFTER, BATCH = 3, 3, 8
BF16 = {"bf16": {"enabled": True}}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    **{f"zero-{stage}": (stage, {}) for stage in (0, 1, 2, 3)},
    **{f"zero-{stage}-bf16": (stage, BF16) for stage in (1, 3)},
    # Each partition in parts of its own, as models of more than 10⁹ parameters have them.
    "zero-3-parts": (3, {"zero_optimization": {"stage": 3, "sub_group_size": 20}}),
}
"""Name → ZeRO stage, and what is added to DeepSpeed's configuration."""
OTHER_STAGE = {"zero-1": "zero-2", "zero-2": "zero-1"}
TO_FOUR = ("zero-0", "zero-1", "zero-3")
"""What four ranks load: of many processes on few cores each takes long."""
