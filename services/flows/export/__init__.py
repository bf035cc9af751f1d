"""Flows to files: JSON lines in the form of Hubble's exporter, rotated, filtered, readable by the stock client.

FlowStore ─ Follower ─▶ Exporter ─ lines ─▶ RotatingFile          one pair per export
flags, a watched file ─▶ ExportSpec ─▶ Keeper (starts, stops, counts)
"""
