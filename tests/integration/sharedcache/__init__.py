"""The shared credential cache between real processes, over real files."""
