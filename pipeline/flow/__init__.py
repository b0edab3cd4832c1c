"""Control maths: pure functions of a state, a sample and a time. No I/O, no logging, no metrics."""
