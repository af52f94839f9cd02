"""Images and masks that a conversion cannot use: collected, named together, or left out and counted."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import ShardError

OnBadImage = Literal["fail", "skip"]
ImageKind = Literal["missing", "suffix", "unreadable", "pixels", "mode"]
IMAGE_KINDS: dict[ImageKind, str] = {
    "missing": "no such file, or not readable",
    "suffix": "of a suffix that no image has here",
    "unreadable": "not the picture that the suffix says, or broken",
    "pixels": "of too many pixels",
    "mode": "of a mode that no shard holds",
}
CAP = 100  # bad inputs that are collected before a conversion stops
EXAMPLES = 5


@dataclass(frozen=True)
class BadInput:
    """An image or a mask that cannot be used: the image's name in the data set, what is wrong in a few words,
    and `message`, the line for people where it is the only one."""

    what: Literal["image", "mask"]
    kind: str
    name: str
    detail: str
    message: str


class BadInputs(ShardError):
    """What stops a conversion under the policy "fail", at most CAP of them, in the order of the data set."""

    def __init__(self, found: Sequence[BadInput]) -> None:
        super().__init__(tuple(found))  # what a process hands to another is made of `args`
        self.found = tuple(found)

    def __str__(self) -> str:
        if len(self.found) == 1:
            return self.found[0].message
        parts = []
        for what, remedy in (
            ("image", "replace them, or leave them out (--on-bad-image skip)"),
            (
                "mask",
                "repair them, have missing ones made (--segment pose), or choose what happens to bad masks "
                "(--on-bad-mask full or skip)",
            ),
        ):
            mine = [bad for bad in self.found if bad.what == what]
            if mine:
                one = len(mine) == 1
                parts.append(
                    f"{len(mine)} {what}{'' if one else 's'} cannot be used: {_named(mine)}; {remedy}"
                )
        more = f"at least {CAP} bad inputs, of which these came first: " if len(self.found) >= CAP else ""
        return more + "; ".join(parts)


def _named(found: Iterable[BadInput]) -> str:
    """Every name, those of one detail together."""
    names: dict[str, list[str]] = {}
    for bad in sorted(found, key=lambda bad: bad.name):
        names.setdefault(bad.detail, []).append(bad.name)
    return ", ".join(f"{', '.join(same)} ({detail})" for detail, same in names.items())


def bad_image(kind: ImageKind, name: str, error: ShardError, where: str) -> BadInput:
    """The BadInput of an error that begins with `where` and ends with what to do."""
    text = str(error)
    detail, _, remedy = text.removeprefix(f"{where}: ").rpartition("; ")
    detail += f": {remedy}" if remedy.startswith("rename") else ""
    return BadInput("image", kind, name, detail, f"{text}, or leave such images out (--on-bad-image skip)")


def check_image_policy(policy: str) -> None:
    """Raise ShardError unless `policy` is one of fail, skip."""
    if policy not in get_args(OnBadImage):
        raise ShardError(f"image policy {policy!r}: use one of {', '.join(get_args(OnBadImage))}")


@dataclass(frozen=True)
class ImageReport:
    """Images that were left out under the policy "skip", by kind, with a few examples as text."""

    policy: OnBadImage
    checked: int
    counts: dict[str, int]
    examples: tuple[str, ...]

    @classmethod
    def of(cls, left_out: Sequence[BadInput], *, checked: int) -> "ImageReport | None":
        """None where no image was left out: the manifest then says nothing of them."""
        if not left_out:
            return None
        counts: Counter[str] = Counter(bad.kind for bad in left_out)
        examples = [
            f"{bad.name}: {bad.detail}"
            for kind in IMAGE_KINDS
            for bad in [bad for bad in left_out if bad.kind == kind][:EXAMPLES]
        ]
        found = {str(kind): counts[kind] for kind in IMAGE_KINDS if counts[kind]}
        return cls("skip", checked, found, tuple(examples))

    @property
    def bad(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """The report for people."""
        first = f"images: {self.checked} checked, {self.bad} bad (policy: {self.policy})"
        return [
            first,
            *(
                f"images: {count} {IMAGE_KINDS[kind]}"
                for kind in IMAGE_KINDS
                if (count := self.counts.get(kind))
            ),
            *(f"images: {example}" for example in self.examples),
        ]

    def warnings(self) -> list[str]:
        """What must not be overlooked: most images were bad."""
        if 2 * self.bad <= self.checked:
            return []
        return [f"MOST IMAGES WERE BAD AND LEFT OUT, {self.bad} of {self.checked}"]
