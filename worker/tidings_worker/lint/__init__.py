"""What can be found wrong with rules and readers before an event comes. Nothing here touches a server."""
