"""Distributed training and evaluation of MaskReID (Qi et al., arXiv 1804.03864)."""

__version__ = "0.1.0"
