"""Sources of images: class folders, flat folders, WebDataset tars, Parquet files, IDX files.

`listing` defines the list of a source's images, and `open` detects the kind of a source. `folders`, `flat`,
`webdataset`, `parquet` and `idx` read one kind each. `captioned` joins images in folders with a `caption_file`.
`files` and `filesystem` list paths and URLs. `system_files` names what is left out, `splits` tells splits apart,
and `labels` numbers classes. Open `listing` first.
"""

from .listing import CaptionsFound, Listing, Reader, Source
from .open import open_images, open_source
from .selection import EARLIER_RULES, RULES
from .splits import split_of_shards

__all__ = [
    "EARLIER_RULES",
    "RULES",
    "CaptionsFound",
    "Listing",
    "Reader",
    "Source",
    "open_images",
    "open_source",
    "split_of_shards",
]
