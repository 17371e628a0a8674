"""`make bench`: speeds as ratios, measured interleaved in one run, because these machines are shared and noisy.

`make bench ARGS="streaming encoding"` runs some of them. `checkpoints` trains for some minutes.
"""

from __future__ import annotations

import sys

import torch

from . import attention_forms, checkpoints, encoding, linear_layers, model_speed, streaming

BENCHMARKS = {
    "attention": attention_forms.run,
    "linear": linear_layers.run,
    "model": model_speed.run,
    "streaming": streaming.run,
    "encoding": encoding.run,
    "checkpoints": checkpoints.run,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    for name, run in BENCHMARKS.items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            run()
