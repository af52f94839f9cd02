"""Recipes x seeds: trained as child processes, ranked, compared row by row with intervals over queries and
seeds."""
