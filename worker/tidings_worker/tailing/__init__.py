"""What `tidings tail` shows: streams and journal in, lines out; `following` and `asking` read, the others are pure."""
