"""Embeddings kept on disk: made from shards or files, searched, added to, and people taken out again.

`store` is the folder, `extractor` the network as a function of pictures, `enrol` brings both together.
"""

from maskreid_dist.gallery.extractor import Extractor
from maskreid_dist.gallery.store import Gallery

__all__ = ["Extractor", "Gallery"]
