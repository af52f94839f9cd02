"""Image-mask shards for person re-identification: conversion, indexed reading, and the order of the samples.

A shard folder is a set of plain WebDataset tar files with a manifest and an index beside them;
`shards/README.md` has the format.
"""

from collections.abc import Callable

from .bad_inputs import BadInput, BadInputs, ImageReport, OnBadImage
from .convert import convert, convert_market1501
from .decode import decode_mask, decode_pair, image_size
from .errors import RemoteError, ShardError
from .identities import IdentityTable
from .job import SHARD_BYTES, JobOptions
from .layouts.cuhk01 import scan_cuhk01
from .layouts.cuhk03 import scan_cuhk03
from .layouts.cuhk03_np import scan_cuhk03_np
from .layouts.dgd import scan_dgd
from .layouts.dukemtmc import scan_dukemtmc
from .layouts.folder import scan_folder
from .layouts.layumi import scan_layumi
from .layouts.lmdb import scan_lmdb
from .layouts.market1501 import scan_market1501
from .layouts.mars import scan_mars
from .layouts.merge import merge_train
from .layouts.msmt17 import scan_msmt17
from .layouts.prid import scan_prid
from .layouts.table import scan_csv
from .layouts.viper import scan_viper
from .mask_quality import JudgedMask, MaskQuality, QualityReport, judge_masks
from .masks.options import MaskKind, MaskOptions, place_masks
from .masks.policy import MaskReport, OnBadMask
from .merging import merge_shards
from .names import SourceNames
from .parts import PartReport, convert_part, finish_parts
from .plan import Draws, FewImages, Plan, PlanSummary, augmentation_key
from .reading import RawPair, ShardSet, Split, open_shards
from .report import ConversionReport
from .samples import Layout, Source
from .shard_stream import ShardStream
from .stream_plan import StreamPlan
from .verification.folder import verify
from .verification.problems import KINDS, Problem
from .verification.remote import verify_url

# The layouts that `maskreid convert` and `maskreid segment` know: each takes a path, and options by keyword.
LAYOUTS: dict[str, Callable[..., Layout]] = {
    "market1501": scan_market1501,
    "dukemtmc": scan_dukemtmc,
    "cuhk03": scan_cuhk03,
    "cuhk03-np": scan_cuhk03_np,
    "msmt17": scan_msmt17,
    "mars": scan_mars,
    "viper": scan_viper,
    "prid": scan_prid,
    "cuhk01": scan_cuhk01,
    "dgd": scan_dgd,
    "csv": scan_csv,
    "folder": scan_folder,
    "layumi": scan_layumi,
    "lmdb": scan_lmdb,
}

__all__ = [
    "KINDS",
    "LAYOUTS",
    "SHARD_BYTES",
    "BadInput",
    "BadInputs",
    "ConversionReport",
    "Draws",
    "FewImages",
    "IdentityTable",
    "ImageReport",
    "JobOptions",
    "JudgedMask",
    "Layout",
    "MaskKind",
    "MaskOptions",
    "MaskQuality",
    "MaskReport",
    "OnBadImage",
    "OnBadMask",
    "PartReport",
    "Plan",
    "PlanSummary",
    "Problem",
    "QualityReport",
    "RawPair",
    "RemoteError",
    "ShardError",
    "ShardSet",
    "ShardStream",
    "Source",
    "SourceNames",
    "Split",
    "StreamPlan",
    "augmentation_key",
    "convert",
    "convert_market1501",
    "convert_part",
    "decode_mask",
    "decode_pair",
    "finish_parts",
    "image_size",
    "judge_masks",
    "merge_shards",
    "merge_train",
    "open_shards",
    "place_masks",
    "scan_csv",
    "scan_cuhk01",
    "scan_cuhk03",
    "scan_cuhk03_np",
    "scan_dgd",
    "scan_dukemtmc",
    "scan_folder",
    "scan_layumi",
    "scan_lmdb",
    "scan_market1501",
    "scan_mars",
    "scan_msmt17",
    "scan_prid",
    "scan_viper",
    "verify",
    "verify_url",
]
