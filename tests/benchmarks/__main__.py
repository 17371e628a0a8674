"""`make bench`: speeds as ratios, measured interleaved in one run, because these machines are shared and noisy."""

from __future__ import annotations

import torch

from . import attention_forms, model_speed

if __name__ == "__main__":
    torch.manual_seed(0)
    attention_forms.run()
    model_speed.run()
