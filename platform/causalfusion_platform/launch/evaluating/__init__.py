"""Measuring trained models: `evaluate` scores them over AR steps and diffusion steps, `analyze` draws Figure 4.

`shards` finds the data of training, and `measuring` opens extractor and reference. `record` writes the results
beside the run, `figure_four` computes the figure's laws and losses. `probe` measures what the layers of a
model know. `probe_request` and `probe_data` check the request, `probe_record` writes the results. Open `evaluate`
first.
"""
