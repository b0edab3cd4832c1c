"""Control store adapters: Redis, memory."""
