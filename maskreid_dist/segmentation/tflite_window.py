"""The last layers of a graph, where its maps are largest, computed in a window of the images alone."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from maskreid_dist.segmentation.tflite_layers import Add, Convolution, Enlarge

ENLARGEMENTS = 3  # so many at the end are computed in windows; maps before them are small
Wiring = Sequence[tuple[tuple[int, ...], int]]  # of each step: the tensors that it is given, and its own


class Window(NamedTuple):
    """Rows top <= y < bottom and columns left <= x < right of a map."""

    top: int
    bottom: int
    left: int
    right: int


class _Part(NamedTuple):
    """A window's values, (B, C, H, W), and where in the whole map they lie."""

    values: Tensor
    top: int
    left: int

    @property
    def window(self) -> Window:
        height, width = self.values.shape[2:]
        return Window(self.top, self.top + height, self.left, self.left + width)

    def cut(self, window: Window) -> "_Part":
        """What there is of the window."""
        mine = self.window
        top, left = max(window.top, mine.top), max(window.left, mine.left)
        bottom, right = min(window.bottom, mine.bottom), min(window.right, mine.right)
        if (top, bottom, left, right) == mine:
            return self
        rows, columns = slice(top - mine.top, bottom - mine.top), slice(left - mine.left, right - mine.left)
        return _Part(self.values[:, :, rows, columns], top, left)


def first_windowed(steps: Sequence[nn.Module]) -> int:
    """The number of the step from which on a window can be computed alone; their number where none can."""
    first, enlargements = len(steps), 0
    for number in reversed(range(len(steps))):
        module = steps[number]
        if isinstance(module, Enlarge):
            first, enlargements = number, enlargements + 1
        elif not isinstance(module, Add) and not (isinstance(module, Convolution) and module.keeps_size):
            break
        if enlargements == ENLARGEMENTS:
            break
    return first


def compute_window(
    steps: Sequence[nn.Module], wiring: Wiring, maps: Mapping[int, Tensor], output: int, window: Window
) -> Tensor:
    """The window of the map `output`, (B, C, bottom - top, right - left), as far as the map goes.

    `steps` and `wiring` are those from `first_windowed` on, `maps` what they need of the earlier ones, each
    (B, C, H, W) and whole. Values are those of the whole map: each layer is computed on all that the next
    ones need, and what is wrong along a cut (margins are zeros only where the map ends) is not needed.
    """
    needed = _needed(steps, wiring, output, window)
    parts = {number: _Part(values, 0, 0) for number, values in maps.items()}
    for module, (sources, result) in zip(steps, wiring, strict=True):
        given = [parts[number] for number in sources]
        if isinstance(module, Add):
            given = [given[0].cut(given[1].window), given[1].cut(given[0].window)]
        elif isinstance(module, Enlarge) or sources[0] in maps:
            given = [given[0].cut(needed[sources[0]])]
        rows, columns = (module.rows, module.columns) if isinstance(module, Enlarge) else (1, 1)
        values = module(*(part.values for part in given))
        parts[result] = _Part(values, given[0].top * rows, given[0].left * columns)
    return parts[output].cut(window).values


def _needed(steps: Sequence[nn.Module], wiring: Wiring, output: int, window: Window) -> dict[int, Window]:
    """Of each map the window that all who use it need; it may reach over the map's ends."""
    needed = {output: window}
    for module, (sources, result) in zip(reversed(steps), reversed(wiring), strict=True):
        wanted = _before(module, needed[result])
        for number in sources:
            other = needed.get(number, wanted)
            needed[number] = Window(
                min(other.top, wanted.top),
                max(other.bottom, wanted.bottom),
                min(other.left, wanted.left),
                max(other.right, wanted.right),
            )
    return needed


def _before(module: nn.Module, window: Window) -> Window:
    """What a step needs of its input for this window of its output."""
    top, bottom, left, right = window
    if isinstance(module, Enlarge):  # bilinear: a pixel more on each side
        top, bottom = top // module.rows - 1, -(-bottom // module.rows) + 1
        left, right = left // module.columns - 1, -(-right // module.columns) + 1
    elif isinstance(module, Convolution):
        rows, columns = (size // 2 for size in module.weight.shape[2:])
        top, bottom, left, right = top - rows, bottom + rows, left - columns, right + columns
    return Window(top, bottom, left, right)
