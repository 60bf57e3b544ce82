"""Benchmarks: speed and memory as ratios against plain baselines, measured in the same run (``make bench``)."""
