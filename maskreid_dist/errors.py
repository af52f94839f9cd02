"""Errors that are the user's to mend. The program prints one as a single line and exits with status 2."""


class UserError(ValueError):
    """What is wrong, where (file, key, line), and what to do about it, in one line."""


class RecipeError(UserError):
    """A recipe that cannot be run as it stands."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not match the recipe."""


class SampleError(UserError):
    """A sample that cannot be read or decoded."""


class RetrievalError(UserError):
    """No query can be evaluated; the message names the cause."""
