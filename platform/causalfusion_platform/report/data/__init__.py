"""Reports on data: `scanning` a source of images, `encoding` it, and the `dataset` of shards that comes of it."""
