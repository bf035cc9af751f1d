"""Flows: columns and dictionaries, a bounded store, filters, and the Hubble API on top.

Input: column batches (from the node's events, or pushed to the relay). Output: `flow.Flow` messages for the rows
that somebody asks for, and only for those.
"""
