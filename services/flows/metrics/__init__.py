"""Flows as Prometheus metrics with the field's names and options (the Hubble API's reference, section 6).

    columns --Batch--> family: which rows, which numbers make a series --group--> counts --Budget--> counters

A batch costs a few passes over its columns and one Python call per distinct series in it, never one per flow.
"""
