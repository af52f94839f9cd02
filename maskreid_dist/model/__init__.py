"""The two-stream network with its skipped fusing layer."""

from maskreid_dist.model.network import MaskReID, Output, Stream, make_stream

__all__ = ["MaskReID", "Output", "Stream", "make_stream"]
