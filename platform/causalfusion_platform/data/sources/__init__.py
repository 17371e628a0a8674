"""Sources of images: class folders, flat folders with a label file, WebDataset tars, Parquet files.

`listing` defines the list of a source's images, and `open` detects the kind of a source. `folders`, `flat`,
`webdataset` and `parquet` read one kind each. `files` and `filesystem` list paths and URLs. Open `listing` first.
"""

from .listing import Listing, Reader, Source
from .open import open_source

__all__ = ["Listing", "Reader", "Source", "open_source"]
