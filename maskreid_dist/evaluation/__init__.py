"""From a checkpoint and a gallery to figures and a report."""
