"""Tables of what the audit works out; no network."""
