"""Every byte of a shard folder checked, and every problem named."""
