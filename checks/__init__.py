"""The judges of the whole system (bench, loadtest, soak, hostile, sim) and the load generators that they share."""
