"""An OpenAI-compatible server over the runtime: chat completions under plans, or dense, in batches.

app          routes, keys, admission, streaming: what a client sees
scheduler    a thread that groups waiting requests into batches
prompts      from a request to model inputs, within limits
job          one request on its way: its tokens, its text, its end
pictures     image URLs to pictures, without being led astray
fetch        images from public addresses only
metrics      what is counted for Prometheus
protocol     the requests that are understood, and the answers
limits       bounds on everything a client can make large
"""
