-- The greatest id of its alerts that was removed since it was too old, or one of too many: who asks
-- for what came after one that was removed is told so from one that never was.
alter table relay.streams add column alerts_removed_to bigint not null default 0;
