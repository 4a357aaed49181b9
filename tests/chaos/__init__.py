"""Attacks on the credential cache while many processes write: `make chaos`, and `make soak`."""
