"""What a server holds, for people to look at: `server` and `reads` for stats, `groups`, `warms`. Changes nothing."""
