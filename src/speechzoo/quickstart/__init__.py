"""The small real run: parts from package registries, a spoken corpus, all stages of both systems, a report."""
