"""Attacks on the runtime while it executes runs of every kind: `make chaos-runs`."""
