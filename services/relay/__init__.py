"""The relay process: takes flow batches pushed up by all agents, stores them, answers Hubble-API queries for all."""
