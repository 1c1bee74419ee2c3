"""Steered generation over HTTP: requests of many clients share the batches of one model.

`batching` gives them to the model and knows no HTTP; `completions` reads what a client asks for, `answers` shapes what
it is told, `refusals` what it is told that gets nothing; `catalogue` has the concepts; `app` the paths, `guard` who may
come in; `server` puts all that on a socket until a signal ends it.
"""
