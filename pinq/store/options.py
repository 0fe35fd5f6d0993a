"""How pinq's RocksDB is set up: small and flat in memory, quick to open.

Memory is two write buffers and the block cache, which the tables' indexes and
filters share, whatever the store's size. Write buffers of 8, 16 and 32 MiB
made no difference to puts beyond the noise; a larger one is a longer log to
read back for who opens the store beside a busy owner (14 MB: 50 ms, twice).
"""

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options

MIB = 1024 * 1024
WRITE_BUFFER_BYTES = 16 * MIB
BLOCK_CACHE_BYTES = 64 * MIB
MAX_OPEN_FILES = 256


def options(cache: Cache) -> Options:
    """The options of a store whose blocks are kept in ``cache``."""
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(10, False)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_format_version(5)

    opts = Options(raw_mode=True)
    opts.create_if_missing(True)
    opts.set_block_based_table_factory(table)
    opts.set_write_buffer_size(WRITE_BUFFER_BYTES)
    opts.set_max_write_buffer_number(2)
    opts.set_max_open_files(MAX_OPEN_FILES)
    opts.set_level_compaction_dynamic_level_bytes(True)
    # A block that LZ4 cannot shrink by an eighth (random floats) is kept as it is.
    opts.set_compression_type(DBCompressionType.lz4())
    # The default ends quietly at the first damaged record of the log, and all
    # after it would be lost without a word. This one forgives only a torn end,
    # which is what a crash leaves.
    opts.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    opts.set_manifest_preallocation_size(64 * 1024)
    opts.set_max_manifest_file_size(4 * MIB)
    opts.set_skip_stats_update_on_db_open(True)
    # RocksDB's own diary: a few small files, and no periodic statistics.
    opts.set_keep_log_file_num(2)
    opts.set_max_log_file_size(MIB)
    opts.set_stats_dump_period_sec(0)
    opts.set_stats_persist_period_sec(0)
    return opts
