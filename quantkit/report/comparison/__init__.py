"""What tells artifacts of one base apart: paired tests, an order, verdicts, and their writers.

Nothing here runs a model: what was measured comes as data.
"""
