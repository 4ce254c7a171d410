"""The drawn world of both notebooks."""
