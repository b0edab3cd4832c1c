"""Codecs: decode the bodies of a protocol into events, all or nothing."""
