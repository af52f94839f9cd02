"""`maskreid bench`: measurements that anyone can repeat; a module a command, which `app` mounts."""
