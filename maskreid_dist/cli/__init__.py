"""The program `maskreid`: a module for each command or group of them, which
`maskreid_dist.cli.app` mounts."""
