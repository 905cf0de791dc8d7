"""A trainer that keeps its weights in shards updates an engine after each step."""
