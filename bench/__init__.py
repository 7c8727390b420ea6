"""Benchmarks: arms compared in one run, ratios printed, one JSON line last."""
