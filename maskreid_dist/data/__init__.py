"""Image-mask pairs from shards into batches."""
