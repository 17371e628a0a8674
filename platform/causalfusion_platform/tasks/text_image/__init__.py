"""Text and images in one model (Section 4.3, Table 6a): images drawn from text, and captions of images.

`task` is the task. `checks` refuses data, tokenizers and settings that do not suit. `training` has the batch and
the loss of one step. `both_directions` draws and describes at the end of a run, and `scoring` measures it.
"""

from .task import TextImage

__all__ = ["TextImage"]
