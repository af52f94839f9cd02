"""The one exception that bad data raises."""


class ShardError(ValueError):
    """Bad input. The message is one line: what is wrong, where (file, or shard and key), what to do."""
