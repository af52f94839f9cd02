"""A loss's options as the compiler's operator takes them. Imported where a loss is compiled: this imports the
compiler."""

from __future__ import annotations

import json
from typing import Any

import torch


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # the compiler does not look into json
def packed(words: dict[str, Any], numbers: tuple[str, ...], *call: object) -> str:
    """What the compiler may take for constant, as an operator's argument can be. Numbers may change from call
    to call."""
    return json.dumps({"words": words, "numbers": numbers, "call": call})
