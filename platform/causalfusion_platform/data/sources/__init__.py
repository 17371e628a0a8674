"""Sources of images: class folders, flat folders with a label file, WebDataset tars, Parquet files.

`listing` defines the list of a source's images, and `open` detects the kind of a source. `folders`, `flat`,
`webdataset` and `parquet` read one kind each. `files` and `filesystem` list paths and URLs. `system_files` names
what is left out, `splits` tells splits apart, and `labels` numbers classes. Open `listing` first.
"""

from .listing import Listing, Reader, Source
from .open import open_source
from .selection import EARLIER_RULES, RULES

__all__ = ["EARLIER_RULES", "RULES", "Listing", "Reader", "Source", "open_source"]
