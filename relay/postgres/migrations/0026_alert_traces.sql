-- Where the trace of an alert goes on, as `traceparent` and `tracestate` of W3C Trace Context; null
-- where it is not traced. Another process than the one that accepted it may deliver it.
alter table relay.alerts add column trace_context text;

-- As in migration 0011, with the trace context, which comes from the sender, too.
create or replace function relay.set_alert_bytes() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    new.bytes := 200 + octet_length(new.message) + coalesce(octet_length(new.metadata::text), 0)
        + coalesce(octet_length(new.trace_context), 0);
    return new;
end
$$;

-- As in migration 0020, with the trace contexts.
create function relay.store_alerts(
    stream_ids text[],
    senders text[],
    severities text[],
    messages text[],
    timestamps bigint[],
    metadata json[],
    alert_keys text[],
    trace_contexts text[]
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
            trace_context, accepted_at
        )
        select given.*, clock_timestamp()
        from unnest(
            ids, stream_ids, senders, severities, messages, timestamps, metadata, alert_keys,
            trace_contexts
        ) as given (
            id, stream_id, sender, severity, message, at, metadata, alert_key, trace_context
        )
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

-- For alerts from SQL, and for relays before this migration.
create or replace function relay.store_alerts(
    stream_ids text[],
    senders text[],
    severities text[],
    messages text[],
    timestamps bigint[],
    metadata json[],
    alert_keys text[]
) returns table (alert_id bigint, fresh boolean)
language sql set search_path = pg_catalog, pg_temp as $$
    select stored.alert_id, stored.fresh
    from relay.store_alerts(
        stream_ids, senders, severities, messages, timestamps, metadata, alert_keys, '{}'::text[]
    ) as stored
$$;
