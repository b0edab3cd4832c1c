"""The HTTP contract for programs and people: `GET /openapi.json` and `GET /docs`."""
