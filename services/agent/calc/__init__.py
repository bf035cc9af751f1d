"""The brain of the agent, pure: updates in, map changes out. `engine.Engine` is the way in."""
