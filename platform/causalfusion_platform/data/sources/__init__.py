"""Sources of images: class folders, flat folders with a label file, WebDataset tars, Parquet files."""

from .listing import Listing, Reader, Source
from .open import open_source

__all__ = ["Listing", "Reader", "Source", "open_source"]
