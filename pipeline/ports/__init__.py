"""The interfaces between the core and the outside world: one Protocol for each concept."""
