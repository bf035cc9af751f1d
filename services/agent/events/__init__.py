"""Kernel events on their way up: ring buffers -> columns -> this node's store and the relay.

Input: two rings of fixed-size records and the `lost` counters (`services.agent.abi.events`), names from the agent's
catalogues. Output: `FlowPipeline.store` (what the node's Observer serves) and a push stream to the relay.
"""
