"""Real clients of other languages, unchanged, against a Sluice of its own: what they sent must be stored once."""
