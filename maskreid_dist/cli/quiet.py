"""What libraries say at a training's start and end that is none of ours."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """DeepSpeed logs every default at start-up; errors and warnings of ours remain."""
    # A rank that leaves while others ask its store is said in a line of ours, without torch's own.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found no GPU
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="deepspeed|torch")
