"""`tidings demo`: the whole main job on real input, with a real server and a real worker, checking itself.

Importing this package defines no event and no cached function; `service` does, and only the demo imports it.
"""

#: What is indexed when nobody says; the first of them are ingested again, one a round.
PACKAGES = ("json", "email", "asyncio", "http", "logging")
ROUNDS = 3
