"""The last layers of a graph in a window: the values of the whole."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskreid_dist.segmentation.tflite_layers import Add, Convolution, Enlarge
from maskreid_dist.segmentation.tflite_window import Window, compute_window, first_windowed

GENERATOR = torch.Generator().manual_seed(0)
CHANNELS, HEIGHT, WIDTH = 4, 48, 40
SMALL, LARGE = 0, 1  # the maps that the steps are given


def convolution(side: int, stride: int = 1, groups: int = CHANNELS, activation: str = "relu6") -> Convolution:
    weight = torch.randn(CHANNELS, CHANNELS // groups, side, side, generator=GENERATOR)
    bias = torch.randn(CHANNELS, generator=GENERATOR)
    return Convolution(weight, bias, (stride, stride), None, activation, depthwise=groups == CHANNELS)


STEPS = [
    Enlarge(2, 2), Add("none"), convolution(3), Enlarge(2, 1), Add("relu"), convolution(5),
    convolution(1, groups=1), Add("relu6"), Enlarge(2, 2), convolution(3, activation="none"),
]  # fmt: skip
# The map of step n is n + 2.
WIRING = [
    ((SMALL,), 2), ((2, 2), 3), ((3,), 4), ((4,), 5), ((5, LARGE), 6), ((6,), 7),
    ((7,), 8), ((8, 6), 9), ((9,), 10), ((10,), 11),
]  # fmt: skip
MAPS = {
    SMALL: torch.randn(2, CHANNELS, HEIGHT // 8, WIDTH // 4, generator=GENERATOR),
    LARGE: torch.randn(2, CHANNELS, HEIGHT // 2, WIDTH // 2, generator=GENERATOR),
}


def whole() -> Tensor:
    maps = dict(MAPS)
    for step, (sources, result) in zip(STEPS, WIRING, strict=True):
        maps[result] = step(*(maps[source] for source in sources))
    return maps[11]


WHOLE = whole()


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(0, HEIGHT - 1)] * 2), st.tuples(*[st.integers(0, WIDTH - 1)] * 2))
def test_a_window_has_the_values_of_the_whole(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    window = Window(min(rows), max(rows) + 1, min(columns), max(columns) + 1)
    found = compute_window(STEPS, WIRING, MAPS, 11, window)
    expected = WHOLE[:, :, window.top : window.bottom, window.left : window.right]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_where_windows_begin() -> None:
    """At the third enlargement from the end, or after what does not keep pixels in their places."""
    assert WHOLE.shape == (2, CHANNELS, HEIGHT, WIDTH)
    assert first_windowed(STEPS) == 0
    assert first_windowed([Enlarge(2, 2), *STEPS]) == 1
    assert first_windowed([*STEPS[:6], convolution(3, stride=2), *STEPS[6:]]) == 9
    assert first_windowed([*STEPS[:9], convolution(2)]) == 11 - 1
    assert first_windowed([convolution(3)]) == 1
