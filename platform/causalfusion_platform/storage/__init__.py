"""Files on disk, below everything else.

`atomic` replaces a file so that readers see the old content or the new one. `run_layout` names the paths inside the
folder of a run. Open `run_layout` first.
"""
