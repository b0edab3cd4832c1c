"""Protocols of clients that know nothing of Sluice: each reads its bodies, and answers as its clients expect."""
