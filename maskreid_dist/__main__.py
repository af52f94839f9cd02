"""`python -m maskreid_dist`."""

from maskreid_dist.cli import main

main()
