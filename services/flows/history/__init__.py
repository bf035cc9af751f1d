"""Flows on disk: full segments as Parquet files, read back by the same filters that run in memory.

    FlowStore --segments--> writer --> flows-*.parquet --> StoredSegment --> select, Selection, Renderer
                                            |
                                            +--> DuckDB and every other reader of Parquet

`files` knows names, order and retention; `table` the columns of a file; `stored` reads one; `history` is all of them.
"""
