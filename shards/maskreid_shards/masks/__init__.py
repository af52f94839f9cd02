"""Masks of a conversion: where they lie and what they hold (`options`), what becomes of a bad one
(`policy`)."""
