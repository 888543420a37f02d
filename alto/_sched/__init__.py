"""Implementation of `alto.sched`: decide which engine runs a call, and when. Synchronous and clock-free."""
