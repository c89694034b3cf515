"""The Storage SCP: who may come in, what is taken, and to whom it is handed.

Owns negotiation, access control, limits and the C-STORE answer. Must not know what becomes of an
instance: that is the sink's business.
"""
