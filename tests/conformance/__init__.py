"""Which cases of the official SDK's behaviour the suite holds, and the page that says so."""
