"""The four judges of the whole system (bench, loadtest, soak, hostile) and the load generators that they share."""
