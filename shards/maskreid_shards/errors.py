"""The exceptions that bad data and unreachable data raise."""


class ShardError(ValueError):
    """Bad input. The message is one line: what is wrong, where (file, or shard and key), what to do."""


class RemoteError(ShardError):
    """The store did not deliver, so the data may be sound: never a bad sample, and other processes may fare
    better."""
