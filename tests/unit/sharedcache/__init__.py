"""The shared credential cache inside one process."""
