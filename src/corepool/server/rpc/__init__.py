"""The gRPC side: translates messages to the data plane and back.

It must not know devices, databases or what requests mean.
"""
