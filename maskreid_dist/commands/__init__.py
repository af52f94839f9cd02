"""Groups of subcommands of the program `maskreid`, one module each; `maskreid_dist.cli` mounts them."""
