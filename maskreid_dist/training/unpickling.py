"""DeepSpeed's loader without code: its files are pickles, and it asks torch to unpickle whatever they name.

torch can be told from outside to build tensors and plain values alone, with exceptions by name; a file that
names anything else is refused before it is called. This is the one place where the exceptions stand.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from maskreid_dist.errors import CheckpointError

ONLY, ANYTHING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def tensors_only(path: Path) -> Iterator[None]:
    """Inside, `torch.load` makes tensors, plain values and DeepSpeed's three plain classes, whatever it is
    told.

    path: the checkpoint. Raises CheckpointError: one of its files holds something else.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = {name: os.environ.pop(name, None) for name in (ONLY, ANYTHING)}
    os.environ[ONLY] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # pickle's, which nothing here imports
            raise
        words = " ".join(str(error).split())
        what = words[words.find("GLOBAL") :] if "GLOBAL" in words else words
        raise CheckpointError(
            f"{path}: holds more than tensors ({what[:120]}), so it was not saved by this program; "
            "nothing of it was run; remove it"
        ) from None
    finally:
        del os.environ[ONLY]
        os.environ.update({name: value for name, value in before.items() if value is not None})
