"""What a conversion says when it is done."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .manifest import Manifest


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: the manifest it wrote, where, and what was found beside it.

    `differences` are the counts that are not the published ones, `checked` how many were compared. `warnings`
    are what makes the shards useless for most: they end the report.
    """

    out: Path
    manifest: Manifest
    strays: tuple[str, ...]
    notes: tuple[str, ...]
    differences: tuple[str, ...]
    checked: int
    warnings: tuple[str, ...] = ()

    def content(self) -> dict[str, Any]:
        """The report for programs, of what JSON has. The manifest beside the shards has more."""
        splits = {
            name: {
                "images": split.samples,
                "junk": split.junk,
                "distractors": split.distractors,
                "identities": split.identities,
                "single_image_identities": split.single_image_identities,
                "cameras": list(split.cameras),
                "shards": len(split.shards),
                "bytes": sum(shard.bytes for shard in split.shards),
            }
            for name, split in self.manifest.splits.items()
        }
        return {
            "out": str(self.out),
            "dataset": self.manifest.dataset,
            "layout": self.manifest.layout,
            "fingerprint": self.manifest.fingerprint,
            "splits": splits,
            "masks": {**asdict(self.manifest.masks), "bad": self.manifest.masks.bad},
            "images": asdict(self.manifest.images) if self.manifest.images else None,
            "published": {"compared": self.checked, "differences": list(self.differences)},
            "ignored_files": len(self.strays),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        lines = [f"{self.manifest.dataset} ({self.manifest.layout}) -> {self.out}"]
        for name, split in self.manifest.splits.items():
            size_mb = sum(shard.bytes for shard in split.shards) / 1e6
            others = (
                f" (of them {split.junk} junk, {split.distractors} distractors)"
                if split.junk or split.distractors
                else ""
            )
            lines.append(
                f"{name}: {split.samples} images{others}, {split.identities} identities, "
                f"{len(split.cameras)} cameras, {len(split.shards)} shards, {size_mb:.1f} MB"
            )
            if split.single_image_identities:
                lines.append(f"{name}: {split.single_image_identities} identities have a single image")
            if len(split.cameras) == 1:
                lines.append(f"{name}: all images come from camera {split.cameras[0]}")
        if self.manifest.images is not None:
            lines += self.manifest.images.lines()
        masks = self.manifest.masks
        lines.append(f"masks: {masks.checked} checked, {masks.bad} bad (policy: {masks.policy})")
        if masks.maker:
            about = ", ".join(f"{name} {value}" for name, value in masks.maker.items())
            lines.append(f"masks: made by {about}")
        lines += [f"masks: {count} {kind}" for kind, count in masks.counts.items() if count]
        lines += [f"masks: {example}" for example in masks.examples]
        lines += self.notes
        lines += [f"NOT AS PUBLISHED: {difference}" for difference in self.differences]
        if self.checked:
            lines.append(f"{self.checked - len(self.differences)} of {self.checked} counts are as published")
        if self.strays:
            lines.append(f"{len(self.strays)} other files ignored: {', '.join(self.strays[:3])}")
        lines.append(f"fingerprint {self.manifest.fingerprint}")
        return lines + list(self.warnings)
