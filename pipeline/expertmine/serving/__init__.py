"""Steered generation over HTTP: requests of many clients share the batches of one model.

`batching` sends them to the model and knows no HTTP; `completions` parses requests, `responses` and `refusals` build
response bodies and error bodies; `catalogue` lists the concepts; `app` has the routes, `guard` the authentication;
`server` runs the service on a socket until a signal ends it. `offline` generates for a list of requests without HTTP.
"""
