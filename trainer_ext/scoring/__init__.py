"""Score large numbers of texts: a stream of texts in, a folder of shards out."""
