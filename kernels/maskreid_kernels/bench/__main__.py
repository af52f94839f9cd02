"""`python -m maskreid_kernels.bench COMMAND ...`; every command has --help."""

import sys

from .command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
