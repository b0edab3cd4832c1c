"""The live page of the whole system, `GET /`, and its data sources. Read-only, and never delays a request."""
