"""Stage 1: images -> Parquet of class-agnostic masks."""
