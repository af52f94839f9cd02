"""The weights that timm publishes of a trunk, by timm's own loader (pretrained=True of timm.create_model)."""

import shlex
from typing import Any

import torch
from safetensors.torch import save

from maskreid_dist.errors import CheckpointError

PUBLISHED = "pretrained:timm"  # as model.init


def published_weights(name: str) -> tuple[str, bytes]:
    """Where timm has them from, and they as a safetensors file, by the names of timm's plain model.

    Fetched into the cache of the Hugging Face hub, or taken from it; torch's random numbers stay as they
    were. Raises CheckpointError: timm publishes none of this model, or they are neither there nor to be had.
    """
    import timm  # takes seconds

    about = timm.get_pretrained_cfg(name)
    if about is None or not about.has_weights:
        raise CheckpointError(f"model.init = {PUBLISHED!r}: timm publishes no weights of {name}; name a file")
    source = about.hf_hub_id or about.url
    try:
        with torch.random.fork_rng(devices=[]):
            net = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:  # the hub's errors are OSErrors
        program = f"import timm; timm.create_model('{name}', pretrained=True)"
        raise CheckpointError(
            f"model.init = {PUBLISHED!r}: {source} is neither in {_cache()} nor to be fetched "
            f"({type(error).__name__}); where there is a network: python -c {shlex.quote(program)}, and copy "
            "that folder here"
        ) from None
    tensors = {key: tensor.contiguous().clone() for key, tensor in net.state_dict().items()}
    return f"timm: {source}", save(tensors)


def _cache() -> Any:
    from huggingface_hub import constants  # timm needs it

    return constants.HF_HUB_CACHE
