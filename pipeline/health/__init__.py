"""How the whole system is: one snapshot of what is known, one pure judge, one verdict for everybody who shows it."""
