"""One rank of a training, for launchers that start a file or a module; `launch/train.py` for a package.

deepspeed --num_gpus 2 --module maskreid_dist.cli.train RECIPE.toml
"""

from maskreid_dist.cli.app import train_main

if __name__ == "__main__":
    train_main()
