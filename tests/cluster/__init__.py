"""Several hosts on one machine, and a training over them by every launcher: `make cluster`."""
