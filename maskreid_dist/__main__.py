"""`python -m maskreid_dist`."""

from maskreid_dist.cli.app import main

main()
