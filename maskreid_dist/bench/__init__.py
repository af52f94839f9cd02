"""The loader's benchmark, beside webdataset and loose files. `maskreid bench loader` runs it."""
