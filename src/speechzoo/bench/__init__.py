"""Measurements of cost: ratios and tables, never a verdict on time."""
