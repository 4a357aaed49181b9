"""The run store: where runs are queued and recorded."""
