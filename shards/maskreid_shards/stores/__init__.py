"""Where the bytes of shards come from: the local disk, http, fsspec, and a local copy of the last two."""
