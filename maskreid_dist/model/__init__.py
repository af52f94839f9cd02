"""The two-stream network with its skipped fusing layer."""

from maskreid_dist.model.build import build_network
from maskreid_dist.model.network import MaskReID, Output, ReIDNetwork, make_stream

__all__ = ["MaskReID", "Output", "ReIDNetwork", "build_network", "make_stream"]
