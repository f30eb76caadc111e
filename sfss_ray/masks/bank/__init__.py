"""The mask bank: Parquet shards of run lengths, and id maps painted from them."""
