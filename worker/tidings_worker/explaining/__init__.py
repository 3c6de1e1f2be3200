"""Why an entry is cached, or is not: `tidings explain`.

`gathering` asks the servers, `history` reads the invalidation log, `explanation` decides what it all means, `waiting`
says which events are still to come; `wording` puts it into sentences, `documents` into JSON.
"""
