"""The auditor: are the entries that readers are served what their functions would return now? `tidings verify`.

`sampling` chooses entries, `subjects` finds out what each of them is the result of, `checking` loads one and compares,
with the argument why that raises no false alarm, `settling` waits for events, `audit` does it for all within a `plan`,
at a `pace`. `verdicts`, `nines`, `finding` and `reports` are pure: what it means, and what is told of it. `scheduled`
does it again and again in the worker.
"""
