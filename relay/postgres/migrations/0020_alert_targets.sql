-- Webhooks are one kind of target of many: what they have in common stays in this table.
alter table relay.webhooks rename to alert_targets;
alter table relay.alert_targets rename column webhook_id to target_id;
alter table relay.alert_targets rename constraint webhooks_pkey to alert_targets_pkey;
alter table relay.alert_targets
    drop constraint webhooks_check,
    add column kind text not null default 'webhook', -- names the adapter of relay that delivers
    add column options jsonb not null default '{}', -- what that kind knows beside URL and secret
    -- Its rules: kinds of events, the lowest severity of alerts, seconds for which further events of
    -- the same kind and stream are suppressed, and how the ids of streams begin.
    add column events text[] not null default '{alert}',
    add column min_severity text not null default 'low'
        check (min_severity in ('low', 'medium', 'high', 'critical')),
    add column cooldown integer not null default 0 check (cooldown between 0 and 604800),
    add column stream_prefix text,
    add column suppressed bigint not null default 0,
    -- Of one stream, or of all streams of a user and all whose ids begin so, or both.
    add constraint alert_targets_scope check (
        case when stream_id is null then num_nonnulls(owner_id, stream_prefix) > 0
        else num_nonnulls(owner_id, stream_prefix) = 0 end
    );

-- For relays before this migration, which know no rules and no other kinds.
create view relay.webhooks as
    select target_id as webhook_id, owner_id, stream_id, url, secret, created_at, position,
        delivered, failures, failing_since, try_again_at, last_error, given_up_at, lease,
        leased_until
    from relay.alert_targets
    where kind = 'webhook' and events = '{alert}' and min_severity = 'low' and cooldown = 0
        and stream_prefix is null;
do $$
declare
    held record;
begin
    -- Those who could use the table can use the view.
    for held in
        select acl.privilege_type as privilege, acl.grantee::regrole as role
        from pg_class as c cross join lateral aclexplode(c.relacl) as acl
        where c.oid = 'relay.alert_targets'::regclass and acl.grantee not in (0, c.relowner)
            and acl.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    loop
        execute format('grant %s on relay.webhooks to %s', held.privilege, held.role);
    end loop;
end
$$;

-- What a target with a cooldown has had of each stream, and how much was suppressed since.
create table relay.target_cooldowns (
    target_id text not null references relay.alert_targets on delete cascade,
    stream_id text not null,
    kind text not null,
    delivered_id bigint not null, -- the id of the last event that was delivered, which is its time
    suppressed bigint not null,
    primary key (target_id, stream_id, kind)
);

-- Events of streams beside alerts. Their ids are of the same sequence as those of alerts, given out
-- under the same lock: a target has one position for both.
create table relay.stream_events (
    event_id bigint primary key,
    stream_id text collate "C" not null,
    owner_id text not null,
    life bigint not null, -- of the stream, as in relay.alerts
    kind text not null,
    epoch bigint not null,
    happened_at timestamptz not null default clock_timestamp()
);
create index events_of_a_stream on relay.stream_events (stream_id, event_id);
create index events_of_an_owner on relay.stream_events (owner_id, event_id);

-- The greatest id that any alert or event has, or had before it was removed. All ids up to it are of
-- transactions that others can see: who has read up to it has missed none. Those who store alerts
-- need no right to the events.
create function relay.last_outbox_id() returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select greatest(
        (select max(a.alert_id) from relay.alerts a),
        (select max(e.event_id) from relay.stream_events e),
        (select max(s.alerts_removed_to) from relay.streams s),
        0
    )
$$;

-- As in migration 0010, but for the ids, which are greater than those of events as well.
create or replace function relay.store_alerts(
    stream_ids text[],
    senders text[],
    severities text[],
    messages text[],
    timestamps bigint[],
    metadata json[],
    alert_keys text[]
) returns table (alert_id bigint, fresh boolean)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    last_id bigint;
    ids bigint[];
    stored bigint[];
begin
    perform relay.lock_alerts();
    last_id := greatest(
        relay.last_outbox_id(), floor(extract(epoch from clock_timestamp()) * 1000000)
    );
    ids := array(
        select last_id + (sum(step.size) over (order by step.place))::bigint
        from (
            select place, 1 + floor(random() * 1000) as size
            from generate_series(1, cardinality(stream_ids)) as place
        ) as step
        order by step.place
    );
    with inserted as (
        insert into relay.alerts (
            alert_id, stream_id, sender, severity, message, timestamp, metadata, alert_key,
            accepted_at
        )
        select given.*, clock_timestamp()
        from unnest(
            ids, stream_ids, senders, severities, messages, timestamps, metadata, alert_keys
        ) as given (id, stream_id, sender, severity, message, at, metadata, alert_key)
        order by given.id
        on conflict (stream_id, sender, alert_key) do nothing
        returning alerts.alert_id
    )
    select array_agg(inserted.alert_id) into stored from inserted;
    if stored is not null then
        -- Relays listen, so that they deliver at once what another one or SQL has stored.
        perform pg_notify('relay_alerts', ids[cardinality(ids)]::text);
    end if;
    return query
        select coalesce(added.id, (
            select a.alert_id from relay.alerts a
            where a.stream_id = given.stream_id and a.sender = given.sender
                and a.alert_key = given.alert_key
        )), added.id is not null
        from unnest(ids, stream_ids, senders, alert_keys)
            as given (id, stream_id, sender, alert_key)
        left join unnest(stored) as added (id) on added.id = given.id
        order by given.id;
end
$$;

-- As in migration 0012, but for the name of the table.
create or replace function relay.begin_life() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        new.life := nextval('relay.lives'); -- a role that inserts needs no right to the sequence
        return new;
    end if;
    if tg_op = 'UPDATE' then
        if new.owner_id is not distinct from old.owner_id then
            return new;
        end if;
        new.life_began_at := now();
        if new.owner_by_session is not distinct from old.owner_by_session then
            new.owner_by_session := null;
        end if;
        -- For this one transaction: see `relay stream transfer --with-history`.
        if current_setting('relay.with_history', true) = new.stream_id then
            return new;
        end if;
        new.life := nextval('relay.lives');
        new.alerts_from := greatest(old.alerts_from, coalesce(
            (select max(a.alert_id) from relay.alerts as a where a.stream_id = new.stream_id), 0
        ));
    end if;
    if old.owner_id is not null then
        delete from relay.raised_alerts as r where r.stream_id = old.stream_id; -- not stored yet
        delete from relay.grants as g where g.stream_id = old.stream_id;
        update relay.alert_targets as w
        set given_up_at = now(), last_error = 'the stream has another owner'
        where w.stream_id = old.stream_id and w.given_up_at is null;
    end if;
    return case tg_op when 'DELETE' then old else new end;
end
$$;
