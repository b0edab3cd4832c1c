"""A shop with Django whose log records go to Sluice."""
