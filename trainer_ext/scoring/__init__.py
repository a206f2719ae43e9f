"""Bulk scoring: a stream of texts in, a folder of shards out."""
