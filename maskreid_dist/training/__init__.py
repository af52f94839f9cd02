"""Training: batches, objective, engine, checkpoints, and the ranks that share
them; `loop.train` runs a recipe."""
