"""Where the agent's knowledge comes from: external streams turned into `services.model.objects.Update`s.

Every source is one async iterator (`base.Source`). A source never sees the datapath, and never ends by itself.
"""
