"""The REST side: translates HTTP and JSON to the data plane and back.

It must not know devices, databases or what requests mean.
"""
