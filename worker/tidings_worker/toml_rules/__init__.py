"""Rules as data: what stands in a ``rules.toml``, checked with lines and cures, and the rules that it comes to."""
