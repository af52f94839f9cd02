"""The program for a machine with a GPU: correctness, then every figure that is promised there (see
program.py)."""
