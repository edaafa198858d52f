"""The hypervisor: who holds which cores of a card, and what is to be done when that changes.

It must not know how a device works; it sees events and asks for actions.
"""
