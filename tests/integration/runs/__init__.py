"""Runs as clients see them: over the control socket and over HTTP, with real processes."""
