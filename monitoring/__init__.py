"""Configuration of Prometheus, Grafana and Flower."""
