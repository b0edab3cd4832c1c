"""The HTTP edge: admission, validation, group commit, and a client."""
