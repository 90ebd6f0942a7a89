-- Grants and scopes may name prefixes of ids, which are ranges of this index. In other collations
-- they are not.
create index streams_by_prefix on relay.streams (stream_id collate "C");
