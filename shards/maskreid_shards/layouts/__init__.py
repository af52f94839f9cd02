"""Scanners, one module a layout: they find the images of a data set on disk and say whose they are.

Nothing is decoded; what stands in a list or in a file's name is checked, and the first thing that is wrong
stops the scan with a ShardError that names it.
"""
