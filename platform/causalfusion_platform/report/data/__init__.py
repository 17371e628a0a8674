"""Reports on data: `encoding` images, and the `dataset` of shards that comes of it."""
