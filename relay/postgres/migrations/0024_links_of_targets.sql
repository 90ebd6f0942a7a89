-- Links that relay makes for messages to a target: they end with it, and do not count among those
-- that a user may have.
alter table relay.links
    add column target_id text references relay.alert_targets on delete cascade;
create index links_of_a_target on relay.links (target_id, expires_at) where target_id is not null;
