"""Word error rates and reports."""
