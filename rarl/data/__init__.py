"""Sources → one Parquet schema → a Ray Data stream of prepared examples."""
