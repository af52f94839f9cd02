"""The exceptions that bad data and unreachable data raise."""


class ShardError(ValueError):
    """Bad input. The message is one line: what is wrong, where (file, or shard and key), what to do."""


class BadImageError(ShardError):
    """An image that cannot be used; `args` are the message and the kind (`bad_inputs.ImageKind`)."""

    @property
    def kind(self) -> str:
        return str(self.args[1])

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteError(ShardError):
    """The store did not deliver, so the data may be sound: never a bad sample, and other processes may fare
    better."""
