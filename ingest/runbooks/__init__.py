"""The runbooks as pages: what an operator reads at night, also when nothing but ingest answers."""
