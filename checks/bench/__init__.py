"""Measurements: each command prints ratios against a baseline that it runs itself, interleaved."""
