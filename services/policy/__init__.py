"""The policy engine, pure: documents -> normalised policies -> verdicts (the oracle), map entries (the compiler).

`read_policy` is the way in; `verdict.decide` says what a policy means; `compile` makes what the kernel looks up.
"""
