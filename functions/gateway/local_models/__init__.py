"""Models served by ourselves with `transformers`, as a service that speaks OpenAI's API.

`python -m gateway.local_models` runs it, and functions/local_models on Lambda. The gateway reaches it by its
URL as it does any other service (provider `local`), and imports none of it.
"""
