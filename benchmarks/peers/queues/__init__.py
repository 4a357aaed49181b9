"""Task queues that ours is measured beside. Each `*_app` runs in the peers' own environment."""
