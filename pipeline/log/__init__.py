"""Event log adapters: Redis Streams, Kafka, memory."""
