"""Codecs: from the bodies of a protocol to events, all or nothing."""
