"""The network against DGD's table (Xiao et al., CVPR 2016), at width 1.0 and the paper's input size."""

import pytest
import torch
import torch.nn.functional as F

from maskreid_dist.config import Fusing, ModelConfig, Stream
from maskreid_dist.model import MaskReID, make_stream
from maskreid_dist.model.inception import InceptionA, InceptionB

TABLE = {  # module -> C x H x W at width 1.0, input 144x56
    "stems.0.convolutions": (32, 144, 56),
    "stems.1.convolutions": (32, 144, 56),
    "stems.0": (32, 72, 28),
    "low.0": (256, 72, 28),
    "low.1": (384, 36, 14),
    "middle.0": (512, 36, 14),
    "middle.1": (768, 18, 7),
    "high.0": (1024, 18, 7),
    "high.1": (1536, 9, 4),
}


def pair(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 2, (batch, 1, height, width), dtype=torch.uint8, generator=generator) * 255
    return image, mask


def test_every_shape_of_the_dgd_table() -> None:
    network = MaskReID(ModelConfig(width=1.0)).eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        if name in TABLE:
            module.register_forward_hook(
                lambda m, i, out, name=name: shapes.__setitem__(name, tuple(out.shape[1:]))
            )
    with torch.no_grad():
        output = network(*pair(1, 144, 56))
    assert shapes == TABLE
    assert network.fusing.fc.in_features == 384 + 768 + 1536
    assert output.embedding_BD.shape == (1, 256)
    assert output.logits_BC is None


@pytest.mark.parametrize(("fusing", "features"), [("pool", 2688), ("conv", 768 + 768 + 1536), ("none", 1536)])
def test_fusing_variants(fusing: Fusing, features: int) -> None:
    network = MaskReID(ModelConfig(width=1.0, fusing=fusing))
    assert network.fusing.fc.in_features == features


def test_inception_branches_are_those_of_the_table() -> None:
    network = MaskReID(ModelConfig(width=1.0))
    a, b = network.low
    assert isinstance(a, InceptionA) and isinstance(b, InceptionB)
    kernels = {
        name: [tuple(m.weight.shape[2:]) for m in branch.modules() if isinstance(m, torch.nn.Conv2d)]
        for name, branch in {
            **dict(a.named_children()),
            "b_three": b.three,
            "b_double": b.double_three,
        }.items()
    }
    assert kernels == {
        "one": [(1, 1)],
        "three": [(1, 1), (3, 3)],
        "double_three": [(1, 1), (3, 3), (3, 3)],
        "pool": [(1, 1)],
        "b_three": [(1, 1), (3, 3)],
        "b_double": [(1, 1), (3, 3), (3, 3)],
    }
    assert isinstance(a.pool[0], torch.nn.AvgPool2d)
    assert [m.stride for m in b.modules() if isinstance(m, torch.nn.Conv2d)] == [
        (1, 1),
        (2, 2),
        (1, 1),
        (1, 1),
        (2, 2),
    ]


@pytest.mark.parametrize("fusing", ["pool", "conv", "none"])
@pytest.mark.parametrize("streams", [("raw",), ("masked",), ("raw", "masked")])
def test_streams_and_fusing_are_configuration(fusing: Fusing, streams: tuple[Stream, ...]) -> None:
    network = MaskReID(ModelConfig(width=0.125, fusing=fusing, streams=streams), classes=7)
    output = network(*pair(3, 72, 28))
    assert len(network.stems) == len(streams)
    assert output.logits_BC.shape == (3, 7)
    assert torch.allclose(output.embedding_BD.norm(dim=1), torch.ones(3), atol=1e-6)
    output.embedding_BD[:, 0].sum().backward()
    unused = [n for n, p in network.named_parameters() if p.grad is None and not n.startswith("classifier")]
    assert not unused


def first_convolution(module: torch.nn.Module) -> torch.nn.Conv2d:
    return next(one for one in module.modules() if isinstance(one, torch.nn.Conv2d))


def test_stems_are_not_shared_and_the_trunk_is() -> None:
    network = MaskReID(ModelConfig(width=0.125))
    stems = [set(map(id, stem.parameters())) for stem in network.stems]
    assert stems[0].isdisjoint(stems[1])
    first_trunk_conv = first_convolution(network.low)
    last = [[one for one in stem.modules() if isinstance(one, torch.nn.Conv2d)][-1] for stem in network.stems]
    assert first_trunk_conv.in_channels == sum(one.out_channels for one in last)


@pytest.mark.parametrize("size", [(144, 56), (71, 29), (33, 18)])
def test_any_input_size(size: tuple[int, int]) -> None:
    assert MaskReID(ModelConfig(width=0.125)).eval()(*pair(1, *size)).embedding_BD.shape == (1, 256)


def test_masked_stream_holds_the_mean_colour_outside() -> None:
    image, mask = pair(2, 8, 6)
    raw, masked = make_stream("raw", image, mask), make_stream("masked", image, mask)
    inside = (mask == 255).expand_as(raw)
    assert torch.equal(masked[inside], raw[inside])
    assert torch.all(masked[~inside] == 0)
    assert torch.allclose(
        raw[0, :, 0, 0] * 255 + torch.tensor([102.0, 102.0, 101.0]), image[0, :, 0, 0].float()
    )


def test_the_mask_matters_to_the_masked_network_only() -> None:
    image, mask = pair(2, 72, 28)
    cases: tuple[tuple[tuple[Stream, ...], bool], ...] = ((("raw",), False), (("raw", "masked"), True))
    for streams, changes in cases:
        network = MaskReID(ModelConfig(width=0.125, streams=streams)).eval()
        with torch.no_grad():
            a, b = network(image, mask).embedding_BD, network(image, 255 - mask).embedding_BD
        assert (not torch.equal(a, b)) == changes


def test_with_mirror_an_embedding_is_the_mean_of_both_sides_at_inference_alone() -> None:
    torch.manual_seed(0)
    one = MaskReID(ModelConfig(width=0.125), classes=3).eval()
    both = MaskReID(ModelConfig(width=0.125, with_mirror=True), classes=3).eval()
    both.load_state_dict(one.state_dict())
    image, mask = pair(2, 72, 28)
    with torch.no_grad():
        sides = [one(image, mask), one(image.flip(3), mask.flip(3))]
        mean = (sides[0].embedding_BD + sides[1].embedding_BD) / 2
        output, mirrored = both(image, mask), both(image.flip(3), mask.flip(3))
        assert not torch.allclose(sides[0].embedding_BD, sides[1].embedding_BD, atol=1e-3)
        assert torch.allclose(output.embedding_BD, mean / mean.norm(dim=1, keepdim=True), atol=1e-6)
        assert torch.equal(output.embedding_BD, mirrored.embedding_BD)
        assert torch.equal(output.logits_BC, sides[0].logits_BC)
        trained = [network.train()(image, mask).embedding_BD for network in (one, both)]
    assert torch.equal(*trained)


def test_rows_of_the_fusing_layer_are_stripe_means() -> None:
    network = MaskReID(ModelConfig(width=0.125, fusing_rows=3)).eval()
    with torch.no_grad():
        image, mask = pair(2, 72, 28)
        levels = network.features(image, mask)
        stripes = [
            torch.stack([part.mean(dim=(2, 3)) for part in level.split(level.shape[2] // 3, dim=2)], 2)
            for level in levels[:2]
        ]
        low = F.adaptive_avg_pool2d(levels.low_BCHW, (3, 1)).squeeze(3)
    assert torch.allclose(low, stripes[0], atol=1e-5)
    assert network.fusing.fc.in_features == 3 * sum(level.shape[1] for level in levels)


def test_xavier_weights() -> None:
    weight = first_convolution(MaskReID(ModelConfig(width=1.0)).high).weight
    bound = (6 / (weight.shape[0] + weight.shape[1])) ** 0.5
    assert weight.abs().max() <= bound
    assert abs(weight.std().item() - bound / 3**0.5) < 0.02 * bound
