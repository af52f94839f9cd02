"""Whether two commits compute the same bits: training, every loss and a conversion. `make golden
BASE=<commit>`."""
