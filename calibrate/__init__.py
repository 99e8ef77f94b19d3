"""Calibration: samples, model loading, probes with mergeable statistics, and the decision on a plan."""
