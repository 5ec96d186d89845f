"""What structured pruning can do with public architectures and with small patterns, beside a peer."""
