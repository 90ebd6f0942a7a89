-- Whoever stores or removes alerts holds this table, until the transaction ends. Any role may take an
-- advisory lock of any number, but this lock only a role that may update the table.
create table relay.alert_order ();

create or replace function relay.lock_alerts() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('idle_in_transaction_session_timeout', '5s', true);
    lock table relay.alert_order in exclusive mode;
end
$$;

-- For the greatest id that was removed: ids grow also when the clock steps back behind it.
create index streams_by_removed_alerts on relay.streams (alerts_removed_to);

-- As in migration 0005, but for the lock and the ids. An id is the time in microseconds since the
-- Unix epoch, and always greater than those before it: it says when an alert was accepted, and not
-- how many others were. The random steps are for alerts that are stored together.
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
        (select max(a.alert_id) from relay.alerts a),
        (select max(s.alerts_removed_to) from relay.streams s),
        floor(extract(epoch from clock_timestamp()) * 1000000)
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

drop sequence relay.alert_ids;

-- An alert from SQL waits in `relay.raised_alerts` until its transaction is committed and a relay
-- stores it. The transaction that raises it never holds the lock: it may stay open, at any point of
-- its commit too, and harms nobody.
drop trigger store_at_commit on relay.raised_alerts;
drop function relay.store_raised_alert();

create function relay.notify_of_raised_alerts() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pg_notify('relay_alerts', 'raised');
    return null;
end
$$;
create trigger raised_alerts_insert after insert on relay.raised_alerts
    for each statement execute function relay.notify_of_raised_alerts();

-- Stores alerts that were raised in SQL, the first `most` of them; returns how many there were. One
-- whose stream is gone is dropped.
create function relay.store_raised_alerts(most integer) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    taken relay.raised_alerts[];
begin
    perform relay.lock_alerts();
    with removed as (
        delete from relay.raised_alerts as r where r.place = any(array(
            select place from relay.raised_alerts order by place limit most
        ))
        returning r as alert, r.place
    )
    select array_agg(alert order by place) into taken from removed;
    if taken is null then
        return 0;
    end if;
    perform relay.store_alerts(
        array_agg(t.stream_id order by t.place), array_agg(t.sender order by t.place),
        array_agg(t.severity order by t.place), array_agg(t.message order by t.place),
        array_agg(t.timestamp order by t.place), array_agg(t.metadata order by t.place),
        array_agg(t.alert_key order by t.place)
    )
    from unnest(taken) as t
    where exists (select from relay.streams as s where s.stream_id = t.stream_id)
    having count(*) > 0;
    return cardinality(taken);
end
$$;
