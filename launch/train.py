"""Training script for `deepspeed`, `torchrun` and plain `python`; the work is in maskreid_dist.training.loop.

deepspeed --num_gpus 2 launch/train.py launch/recipes/walkers_demo.toml
"""

from maskreid_dist.cli.app import train_main

if __name__ == "__main__":
    train_main()
