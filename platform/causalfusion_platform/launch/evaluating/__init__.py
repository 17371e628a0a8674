"""Measuring trained models: `evaluate` scores them over AR steps and diffusion steps, `analyze` draws Figure 4.

`measuring` opens extractor and reference, `record` keeps what was measured beside the run. Open `evaluate` first.
"""
