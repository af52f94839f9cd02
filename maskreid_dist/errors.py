"""Errors that the program prints as a single line; those of the user's to mend end it with status 2."""


class UserError(ValueError):
    """What is wrong, where (file, key, line), and what to do about it, in one line."""


class TrainingError(RuntimeError):
    """Ends a training on every rank, and is not the user's to mend: one line and status 1, start again."""


class RecipeError(UserError):
    """A recipe that cannot be run as it stands."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not match the recipe."""


class SampleError(UserError):
    """A sample that cannot be read or decoded."""


class RetrievalError(UserError):
    """No query can be evaluated; the message names the cause."""
