"""The losses in the calling forms of other libraries, a module each, imported on request.

`adapters.pytorch_metric_learning`, `adapters.open_metric_learning`, `adapters.sentence_transformers`. None
imports the library whose form it has: objects of the library (distances, miners, a model) are known by what
they say of themselves. A call is computed exactly as the library defines it, or refused with a ValueError
that says what to do instead.
"""
