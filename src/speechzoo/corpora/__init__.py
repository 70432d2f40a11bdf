"""Making training data: published corpora, text instructions and released sets become records, units and a card."""
