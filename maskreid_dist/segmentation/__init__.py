"""Person masks made by torchvision's segmentation networks."""

from maskreid_dist.segmentation.masks import SegmentationReport, segment

__all__ = ["SegmentationReport", "segment"]
