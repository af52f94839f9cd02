"""What conversion and the plan of the batches cost. `maskreid bench convert` and `maskreid bench plan` print
it.

Measurements alone: promises and tables are written by the program, with the forms that all its benchmarks
share.
"""
