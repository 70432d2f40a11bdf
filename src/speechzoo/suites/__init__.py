"""Test suites: questions put to any model, answers scored by rule, recogniser and judge, tables beside the paper's.

In the order of the work: `catalogue` (what suites there are), `questions` and `corpora` (their files), `systems` (who
answers), `store` and `evaluate` (the work, resumable), `rules` and `judge` (scores), `columns` and `results` (tables).
"""
