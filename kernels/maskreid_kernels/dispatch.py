"""What every loss does: check, agree over the ranks, choose a backend, compute in full precision, reduce.

A loss says what differs (`Loss`): the terms that its constants make, and the backends that compute with
them. Its public function calls `compute`. While it is being compiled it is one operator of the graph
(compiled.py), which calls back here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .backends import check_backend, check_device, check_takes_reference, choose_backend
from .compiled import compiled_loss, register
from .crossed import find_crossing
from .guards import compute_dtype, on_their_device, under_transforms
from .options import (
    Call,
    Reference,
    check_group,
    check_ignore_index,
    check_precision,
    check_reduction,
    find_problem,
    find_reference_problem,
)
from .positives import count_valid_anchors
from .precision import choose_precision
from .ranks import RankLayout, ReferenceLayout, agree_on_layouts
from .recorded import kept_rows, scaled

DEFAULTS = Call()[1:]  # of all but the group


@dataclass(frozen=True)
class Family:
    """Losses that share their backends.

    backends: by name, each called with (rows, labels, terms, layout), "triton" with the preset of
    `precision` too; `per_anchor=True` asks those but "triton" for every anchor's value [B], 0 where it is
    not valid. A result is a tensor or (tensor, statistics). plain_up_to: rows up to which the plain
    backend is chosen on a CPU. capturable: backends that read nothing on the host. as_given: backends
    that take rows in any dtype, others in the compute dtype. find_problem: one line on values, or None;
    shapes are checked before. count: of what the mean is taken, for a sum. crossed: those that take
    candidates which are not the batch, called with (rows of valid anchors, reference rows, terms, crossing).
    """

    backends: Mapping[str, Callable[..., Any]]
    plain_up_to: int
    capturable: tuple[str, ...] = ()
    as_given: tuple[str, ...] = ("triton",)
    rows_name: str = "embeddings"
    labels_name: str = "labels"
    find_problem: Callable[[Tensor, Tensor], str | None] | None = None
    count: Callable[[Tensor, RankLayout], Tensor | int] = count_valid_anchors
    crossed: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    available: tuple[str, ...] = field(init=False)
    available_per_anchor: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        # Fields: the lock in Python 3.11's cached_property cannot be compiled.
        object.__setattr__(self, "available", tuple(self.backends))
        per_anchor = tuple(name for name in self.backends if name != "triton")
        object.__setattr__(self, "available_per_anchor", per_anchor)


@dataclass(frozen=True)
class Loss:
    """One loss of a family. `terms` makes what its backends take of the constants, or raises ValueError."""

    name: str
    terms: Callable[..., Any]
    family: Family
    statistics: int = 0

    def __post_init__(self) -> None:
        register(
            self.name,
            partial(_compute_packed, self),
            statistics=self.statistics,
            capturable=self.family.capturable,
        )


def compute(
    loss: Loss,
    rows_BD: Tensor,
    labels_B: Tensor,
    constants: Mapping[str, Any],
    call: Call,
    learned: float | None = None,
) -> tuple[Tensor, Any]:
    """The loss, and what it reports beside it: statistics, their packed form while compiled, or None.

    learned: a number that stands in the rows and must be equal on all ranks, as the constants must.
    Raises ValueError, on every rank of the group alike, on bad input or options.
    """
    if torch.compiler.is_compiling() and call.backend != "reference":
        if call.reduction == "none":
            raise ValueError('reduction "none" under torch.compile: use backend="reference"')
        return compiled_loss(loss.name, rows_BD, labels_B, constants, call)
    return compute_eagerly(loss, rows_BD, labels_B, constants, call, learned)


def compute_eagerly(
    loss: Loss,
    rows_BD: Tensor,
    labels_B: Tensor,
    constants: Mapping[str, Any],
    call: Call,
    learned: float | None = None,
) -> tuple[Tensor, Any]:
    """`compute` outside the compiler, or inside its operator."""
    if call.group is not None:
        check_group(call.group)
    terms, problem = _terms_or_problem(loss, rows_BD, labels_B, constants, call)
    reference = None
    if problem is None and call.reference is not None:
        reference = Reference(*call.reference)
    kept_B = None
    if problem is None and call.ignore_index is not None:
        kept_B = labels_B != call.ignore_index
        rows_BD, labels_B = _kept(rows_BD, kept_B, call), labels_B[kept_B]
        if reference is not None:
            kept_R = reference.labels != call.ignore_index
            reference = Reference(_kept(reference.rows, kept_R, call), reference.labels[kept_R])
    if problem is None and loss.family.find_problem is not None:
        problem = loss.family.find_problem(rows_BD, labels_B)
    options = {}
    if call.group is not None:
        candidates = None if reference is None else f"rows of {reference.rows.dtype}"
        options = _options(loss, {**constants, "learned": learned}, call) | {"reference": candidates}
    reference_RD = None if reference is None else reference.rows
    layout, references = agree_on_layouts(rows_BD, reference_RD, problem, call.group, options)
    if reference is None:
        value, statistics = _computed(loss.family, rows_BD, labels_B, terms, layout, call)
    else:
        crossed = (reference, references)
        value, statistics = _computed_crossed(loss.family, rows_BD, labels_B, *crossed, terms, layout, call)
    if kept_B is not None and call.reduction == "none":
        value = value.new_zeros(len(kept_B)).index_put((kept_B,), value)
    return value, statistics


def _kept(rows_BD: Tensor, kept_B: Tensor, call: Call) -> Tensor:
    """rows_BD[kept_B]; plain for the reference backend, which has derivatives of any order."""
    return rows_BD[kept_B] if call.backend == "reference" else kept_rows(rows_BD, kept_B)


def _terms_or_problem(
    loss: Loss, rows_BD: Tensor, labels_B: Tensor, constants: Mapping[str, Any], call: Call
) -> tuple[Any, str | None]:
    """The terms, or one line saying what is wrong with the options or the input."""
    family = loss.family
    try:
        if call[1:] != DEFAULTS:  # which are fine
            check_backend(call.backend, family.available)
            if call.reference is not None:
                check_takes_reference(call.backend, tuple(family.crossed))
            check_precision(call.precision, call.backend)
            check_reduction(call)
            check_ignore_index(call.ignore_index)
        terms = loss.terms(**constants)
        problem = find_problem(rows_BD, labels_B, rows_name=family.rows_name, labels_name=family.labels_name)
        if problem is None and call.reference is not None:
            problem = find_reference_problem(call.reference, rows_BD, rows_name=family.rows_name)
        if problem is None and call.backend == "triton":
            check_device(rows_BD.device)
            choose_precision(call.precision, rows_BD.dtype)
    except ValueError as error:
        return None, str(error)
    return terms, problem


def _options(loss: Loss, constants: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """All that must be equal on every rank; a tensor's number stands for it."""
    found: dict[str, Any] = {"loss": loss.name, **constants, **call._asdict()}
    del found["group"], found["reference"]
    return {
        key: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        for key, value in found.items()
    }


def _computed(
    family: Family, rows_BD: Tensor, labels_B: Tensor, terms: Any, layout: RankLayout, call: Call
) -> tuple[Tensor, Any]:
    available = family.available_per_anchor if call.reduction == "none" else family.available
    chosen = choose_backend(
        call.backend, layout.total_rows, family.plain_up_to, device=rows_BD.device, available=available
    )
    _refuse_transforms(chosen)
    labels_B = labels_B.to(torch.int64)
    arguments: dict[str, Any] = {"per_anchor": True} if call.reduction == "none" else {}
    if chosen == "triton":
        arguments["precision"] = choose_precision(call.precision, rows_BD.dtype)
    if chosen not in family.as_given:
        rows_BD = rows_BD.to(compute_dtype(rows_BD.dtype))
    # Low precision would move what is mined, and a large scale multiplies rounding.
    with on_their_device(rows_BD, launches=chosen == "triton"):
        found = family.backends[chosen](rows_BD, labels_B, terms, layout, **arguments)
        value, statistics = found if isinstance(found, tuple) else (found, None)
        if call.reduction == "sum":
            count = family.count(labels_B, layout)
            value = value * count if chosen == "reference" else scaled(value, count)
    return value, statistics


def _computed_crossed(
    family: Family,
    rows_BD: Tensor,
    labels_B: Tensor,
    reference: Reference,
    references: ReferenceLayout,
    terms: Any,
    layout: RankLayout,
    call: Call,
) -> tuple[Tensor, Any]:
    """`_computed` with candidates that are not the batch."""
    chosen = "chunked" if call.backend == "auto" else call.backend
    _refuse_transforms(chosen)
    dtype = compute_dtype(torch.promote_types(rows_BD.dtype, reference.rows.dtype))
    with on_their_device(rows_BD, launches=False):
        labels = (labels_B.to(torch.int64), reference.labels.to(torch.int64))
        crossing = find_crossing(*labels, layout, references)
        rows_VD = rows_BD if crossing.all_valid else _kept(rows_BD, crossing.valid_B, call)
        arguments: dict[str, Any] = {"per_anchor": True} if call.reduction == "none" else {}
        both = rows_VD.to(dtype), reference.rows.to(dtype)
        found = family.crossed[chosen](*both, terms, crossing, **arguments)
        value, statistics = found if isinstance(found, tuple) else (found, None)
        if call.reduction == "sum":
            value = value * crossing.counted if chosen == "reference" else scaled(value, crossing.counted)
    if call.reduction == "none" and not crossing.all_valid:
        value = value.new_zeros(len(labels_B)).index_put((crossing.valid_B,), value)
    return value, statistics


def _refuse_transforms(chosen: str) -> None:
    if chosen != "reference" and under_transforms():
        raise RuntimeError(f'torch.func: not by the {chosen} backend; use backend="reference"')


def _compute_packed(
    loss: Loss, rows_BD: Tensor, labels_B: Tensor, constants: Mapping[str, Any], call: Call
) -> tuple[Tensor, Tensor | None]:
    """For the operator, whose outputs are tensors."""
    value, statistics = compute_eagerly(loss, rows_BD, labels_B, constants, call)
    return value, statistics.packed() if loss.statistics else None
