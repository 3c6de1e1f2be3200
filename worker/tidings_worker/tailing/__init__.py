"""What `tidings tail` shows: streams and journal in, lines out; `following` reads, the others are pure."""
