"""A network's model card in the Hub's form: YAML that the Hub reads, then what a person should know."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskreid_dist import __version__
from maskreid_dist.evaluation.report_facts import loss_text
from maskreid_dist.model.checkpoint import Checkpoint

METRICS = {
    "mAP_hits": "mAP (AP by hits)",
    "mAP_trapezoid": "mAP (AP by the trapezoidal rule)",
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "mINP": "mINP",
}
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Measured:
    """How a checkpoint ranks. dataset: its name; figures: the six, in per cent; queries, gallery: images."""

    dataset: str
    figures: Mapping[str, float]
    queries: int
    gallery: int


def model_card(
    checkpoint: Checkpoint,
    license_id: str = "other",
    data_license: str | None = None,
    masks: str | None = None,
    *,
    name: str,
    measured: Measured | None = None,
) -> str:
    """Markdown, from the checkpoint's manifest. license_id: of the weights, as the Hub names it; "other" says
    that it is to be read below. data_license: of the training images, in words. masks: by whom
    or what, in words, where the shards do not record it. measured: None leaves the
    model-index out, and says so."""
    return "\n".join(
        [
            *_front_matter(name, license_id, measured),
            f"# {name}",
            "",
            "A MaskReID network (Qi et al., arXiv 1804.03864): an image and the person's mask in, a unit "
            "vector out, by which images of one person are near each other. Made with `maskreid_dist` "
            f"{__version__}.",
            "",
            *_figures(measured),
            "## Use",
            "",
            "```sh",
            "maskreid evaluate FOLDER SHARDS     # this folder: weights.safetensors and manifest.json",
            "```",
            "",
            "## Data",
            "",
            *_table(_data(checkpoint, masks)),
            "",
            "## Network and training",
            "",
            *_table(_network(checkpoint)),
            "",
            "## Licences",
            "",
            *_licences(checkpoint, license_id, data_license, masks),
            "",
            "## Before it is used",
            "",
            "Re-identification finds persons again: using it on people needs a ground in law. Figures on one "
            "data set say little about other cameras, clothes and persons. Similarity is no proof of "
            "identity: calibrate it on data of the place (`maskreid calibrate`).",
            "",
        ]
    )


def _front_matter(name: str, license_id: str, measured: Measured | None) -> list[str]:
    """JSON's strings are YAML's too."""
    lines = ["---", f"license: {json.dumps(license_id)}", "library_name: maskreid_dist"]
    lines += ["pipeline_tag: image-feature-extraction", "tags:"]
    lines += ["- person-re-identification", "- image-retrieval", "- maskreid"]
    if measured:
        dataset = json.dumps(measured.dataset)
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        lines += ["  - task:", "      type: image-retrieval", "      name: Person re-identification"]
        lines += ["    dataset:", f"      type: {dataset}", f"      name: {dataset}", "    metrics:"]
        for key, title in METRICS.items():
            lines += [f"    - type: {key}", f"      name: {json.dumps(title)}"]
            lines += [f"      value: {measured.figures[key]}"]
    return [*lines, "---", ""]


def _figures(measured: Measured | None) -> list[str]:
    lines = ["## Figures", ""]
    if measured is None:
        return [*lines, "Not measured for this card.", ""]
    rows = {title: f"{measured.figures[key]:.2f}" for key, title in METRICS.items()}
    said = f"{measured.dataset}: {measured.queries} queries, {measured.gallery} gallery images, per cent."
    return [*lines, said, "", *_table(rows), ""]


def _data(checkpoint: Checkpoint, masks: str | None) -> dict[str, str]:
    data = checkpoint.data
    if not data:
        return {"trained on": f"shards {checkpoint.shards_fingerprint[:12]}; more is {NOT_RECORDED}"}
    bad = data.get("bad_masks", {})
    kinds = ", ".join(
        f"{count} {kind}" for kind, count in bad.items() if kind not in ("policy", "checked") and count
    )
    return {
        "trained on": f"{data['dataset']} (layout {data['layout']}), {data['images']} images of "
        f"{data['identities']} persons in {data['cameras']} cameras",
        "shards": checkpoint.shards_fingerprint,
        "masks by": _maker(data.get("mask_maker", {}), masks),
        "bad masks": f"{kinds or 'none'} of {bad.get('checked', 0)}; policy: {bad.get('policy', 'none')}",
    }


def _maker(maker: Mapping[str, str], masks: str | None) -> str:
    if not maker:
        return masks or f"{NOT_RECORDED}: they came with the data"
    return ", ".join(f"{key} {value}" for key, value in maker.items())


def _network(checkpoint: Checkpoint) -> dict[str, str]:
    config, origin = checkpoint.config, checkpoint.origin
    model, data = config.model, config.data
    initial = checkpoint.initial_weights or {}
    versions = ", ".join(f"{name} {version}" for name, version in origin.get("versions", {}).items())
    return {
        "streams": " and ".join(model.streams),
        "trunk": f"{model.backbone}, width {model.width:g}, fusing {model.fusing}",
        "input": f"{data.height} x {data.width} pixels, centre crop of {data.resize_height} x "
        f"{data.resize_width}; masks: 255 is person",
        "embedding": f"{model.embedding_dim} dimensions, unit length"
        + (", mean of image and mirror image" if model.with_mirror else ""),
        "loss": loss_text(config.loss),
        "steps": f"{checkpoint.step} of {config.optimizer.steps}, seed {config.seed}",
        "first weights": _first_weights(model.init, initial),
        "commit": str(origin.get("commit") or NOT_RECORDED),
        "versions": versions or NOT_RECORDED,
        "weights' sha256": checkpoint.weights_sha256,
    }


def _first_weights(init: str | None, initial: Mapping[str, Any]) -> str:
    if init is None:
        return "random"
    return f"{init.rstrip('/').rpartition('/')[2]}, sha256 {initial.get('sha256', NOT_RECORDED)}"


def _licences(
    checkpoint: Checkpoint, license_id: str, data_license: str | None, masks: str | None
) -> list[str]:
    maker = checkpoint.data.get("mask_maker", {})
    dataset = checkpoint.data.get("dataset", "the data set")
    weights = "not stated; ask whoever publishes them" if license_id == "other" else license_id
    network = maker.get("licence", NOT_RECORDED) if maker else f"{NOT_RECORDED}: see the data set's"
    made = f"- Masks: {masks}." if masks and not maker else f"- Mask network: {network}."
    return [
        f"- Weights: {weights}.",
        f"- Training images: {data_license or f'shards do not record a licence; read that of {dataset}'}.",
        made,
        "- Code: Apache-2.0.",
    ]


def _table(rows: Mapping[str, str]) -> list[str]:
    """A cell's bar is no column's end."""
    body = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return ["| | |", "|---|---|", *body]
