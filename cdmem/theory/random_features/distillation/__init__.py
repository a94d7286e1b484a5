"""Consistency distillation of the random-feature network: a reconstruction of what Jiang & Zou (2026) compute.

Nothing of this is published in full: the definitions were rebuilt from fragments (the axes of one figure and the text
around it) and are ours. Everything that is shown of them says so.
"""
