"""The network of a recipe."""

from maskreid_dist.config import Config
from maskreid_dist.model.network import MaskReID


def build_network(config: Config, classes: int) -> MaskReID:
    """The recipe's network; a classifier of `classes` identities, or none for 0."""
    model = config.model
    return MaskReID(
        streams=model.streams,
        width=model.width,
        fusing=model.fusing,
        fusing_rows=model.fusing_rows,
        embedding_dim=model.embedding_dim,
        classes=classes,
        dropout=model.dropout,
        recompute=config.engine.activation_checkpointing,
    )
