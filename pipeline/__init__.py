"""The core of Sluice: the event log, the drain, the sink and the control loop, free of web server and task queue."""
