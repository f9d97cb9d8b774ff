"""The benchmark behind `fastconv bench`: which layout and which algorithm to use on this machine, and how sure that is.

Method and limits: docs/benchmarking.md. The modules, bottom up: `problem` (one-string layers and suites), `timing`
(sampling and statistics), `oracle` (float64 results to check against), `machine` (environment and measured peak),
`peers` (other libraries), `runner` (a whole run), `schema` (the JSON file), `compare`, `report` and `cli`.
"""
