"""The gateway: the one HTTP server process, exec'd by the supervisor."""
