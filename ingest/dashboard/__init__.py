"""The live page of the whole system, `GET /`, and what feeds it: read-only, and never at the cost of a request."""
