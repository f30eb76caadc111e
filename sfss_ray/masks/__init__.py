"""Stage 1: images -> Parquet shards of class-agnostic masks."""
