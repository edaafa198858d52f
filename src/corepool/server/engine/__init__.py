"""The engine: tenants' models and leases on one device in real time, durable across crashes.

It must not know REST, gRPC, keys or configuration files.
"""
