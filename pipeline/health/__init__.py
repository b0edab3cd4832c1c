"""The health of the whole system: one snapshot of the known state, one pure judge, one verdict for all displays."""
