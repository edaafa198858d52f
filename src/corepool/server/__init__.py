"""The inference server: one card, many tenants, over REST and gRPC.

It must not know how a device executes streams, or how models are compiled.
"""
