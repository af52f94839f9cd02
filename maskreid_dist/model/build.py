"""The network of a recipe."""

import torch

from maskreid_dist.config import Config
from maskreid_dist.model.network import MaskReID, ReIDNetwork


def build_network(config: Config, classes: int) -> ReIDNetwork:
    """The recipe's network; a classifier of `classes` identities, or none for 0.

    Raises UserError: a backbone of timm that is not there, or cannot be what the recipe says.
    """
    recompute = config.engine.activation_checkpointing
    if config.model.backbone == "inception":
        return MaskReID(config.model, classes, recompute=recompute)
    from maskreid_dist.model.timm_network import TimmReID  # timm takes seconds to import

    size = (config.data.height, config.data.width)
    return TimmReID(config.model, size, classes, recompute=recompute)


def check_backbone(config: Config) -> None:
    """Raise UserError where the recipe's network cannot be built: shapes alone, no weights are drawn."""
    if config.model.backbone != "inception":
        with torch.device("meta"):
            build_network(config, 0)
