"""Person masks made by a network."""

from maskreid_dist.segmentation.masks import SegmentationReport, segment

__all__ = ["SegmentationReport", "segment"]
