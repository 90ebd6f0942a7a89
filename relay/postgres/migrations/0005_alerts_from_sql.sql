-- Under this lock ids are given out and alerts removed, until the transaction ends. It must not
-- outlive who stands still with it: a relay that is stopped, or a network that is cut.
create function relay.lock_alerts() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('idle_in_transaction_session_timeout', '5s', true);
    perform pg_advisory_xact_lock(1919249505, 1);
end
$$;

-- Every alert comes in here, from relay's own intake and from SQL. Ids are given out under a lock
-- that is held until the transaction is committed and seen by others: who has read up to some id has
-- missed none below it. Returns a row for each alert, in their order; one whose stream, sender and
-- key are those of an earlier alert is that alert, and not `fresh`.
create function relay.store_alerts(
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
    ids bigint[];
    stored bigint[];
begin
    perform relay.lock_alerts();
    -- Repeated alerts leave gaps, which harm nobody.
    ids := array(
        select nextval('relay.alert_ids') from generate_series(1, cardinality(stream_ids))
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

-- An alert that a transaction has raised becomes an alert when it commits, and no sooner: so it holds
-- the lock of `store_alerts` for that moment only, however long it is open. A row is put here and
-- taken away by one transaction, so nobody else ever sees one.
create table relay.raised_alerts (
    place bigint generated always as identity primary key,
    stream_id text not null,
    sender text not null,
    severity text not null,
    message text not null,
    timestamp bigint not null,
    metadata json,
    alert_key text
);

create function relay.store_raised_alert() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    delete from relay.raised_alerts where place = new.place;
    perform relay.store_alerts(
        array[new.stream_id], array[new.sender], array[new.severity], array[new.message],
        array[new.timestamp], array[new.metadata], array[new.alert_key]
    );
    return null;
end
$$;
revoke execute on function relay.store_raised_alert() from public;

create constraint trigger store_at_commit after insert on relay.raised_alerts
    deferrable initially deferred for each row execute function relay.store_raised_alert();

-- For backends that talk to this database anyway. The bounds are those of the protocol; whoever may
-- execute it may raise alerts for every stream. The id is given out at the commit, so there is none
-- to return.
create function relay.raise_alert(
    stream_id text,
    message text,
    severity text default 'medium',
    alert_key text default null,
    metadata jsonb default null,
    sender text default null, -- 'sql:' and the role that is logged in
    seen_at timestamptz default clock_timestamp()
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    wrong text;
    code text := 'invalid_parameter_value';
    hint text;
begin
    sender := coalesce(sender, 'sql:' || session_user);
    if stream_id is null or message is null or severity is null or seen_at is null then
        code := 'null_value_not_allowed';
        wrong := 'an alert has a stream, a message, a severity and a time';
        hint := 'Leave an argument out to have its default.';
    elsif severity not in ('low', 'medium', 'high', 'critical') then
        wrong := format('%L is no severity', left(severity, 20));
        hint := 'It is low, medium, high or critical.';
    elsif char_length(message) > 8192 then
        code := 'string_data_right_truncation';
        wrong := 'the message of an alert has at most 8192 characters';
        hint := 'What is more goes into metadata.';
    elsif alert_key = '' or char_length(alert_key) > 256 then
        code := 'string_data_right_truncation';
        wrong := 'the key of an alert has 1 to 256 characters';
        hint := 'Without a key it is null.';
    elsif sender = '' or char_length(sender) > 256 then
        code := 'string_data_right_truncation';
        wrong := 'the sender of an alert has 1 to 256 characters';
        hint := 'Left out, it is the role that is logged in.';
    elsif not isfinite(seen_at) or seen_at < to_timestamp(0) or seen_at > '9999-12-31 UTC' then
        wrong := 'the time of an alert is between 1970 and 9999';
        hint := 'It is when something was seen; left out, that is now.';
    elsif metadata is not null then
        select into wrong, hint, code w.wrong, w.hint, w.code
            from relay.wrong_with_metadata(metadata) as w;
    end if;
    if wrong is null
        and not exists (select from relay.streams as s where s.stream_id = raise_alert.stream_id)
    then
        code := 'foreign_key_violation';
        wrong := format('there is no stream %L', left(stream_id, 128));
        hint := 'A stream is there from its first registration.';
    end if;
    if wrong is not null then
        raise exception using errcode = code, message = wrong, hint = hint;
    end if;
    insert into relay.raised_alerts (
        stream_id, sender, severity, message, timestamp, metadata, alert_key
    ) values (
        stream_id, sender, severity, message, floor(extract(epoch from seen_at) * 1000),
        metadata::json, alert_key
    );
end
$$;

create function relay.wrong_with_metadata(metadata jsonb, out wrong text, out hint text, out code text)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    code := 'invalid_parameter_value';
    if jsonb_typeof(metadata) <> 'object' then
        wrong := format('the metadata of an alert is an object, not a JSON %s', jsonb_typeof(metadata));
        hint := 'Such as jsonb_build_object(''zone'', 3).';
    elsif octet_length(metadata::text) > 65536 then
        code := 'program_limit_exceeded';
        wrong := 'the metadata of an alert has at most 65536 bytes as text';
        hint := 'Keep it elsewhere, and say where.';
    else
        with recursive inside (value, depth) as (
            select metadata, 1
            union all
            select child.value, inside.depth + 1
            from inside, lateral (
                select o.value from jsonb_each(
                    case jsonb_typeof(inside.value) when 'object' then inside.value else '{}' end
                ) as o
                union all
                select a.value from jsonb_array_elements(
                    case jsonb_typeof(inside.value) when 'array' then inside.value else '[]' end
                ) as a
            ) as child
            where inside.depth <= 33
        )
        select case
            when max(depth) filter (where jsonb_typeof(value) in ('object', 'array')) > 32
                then 'the metadata of an alert nests at most 32 deep'
            when bool_or(
                case jsonb_typeof(value) when 'number' then
                    value::numeric < -9223372036854775808 or value::numeric > 18446744073709551615
                end
            ) then 'a number in the metadata of an alert is from -2^63 to 2^64 - 1'
        end
        into wrong from inside;
        hint := 'Others have to be able to read it; pass it as text.';
    end if;
    if wrong is null then
        hint := null;
    end if;
end
$$;
revoke execute on function relay.wrong_with_metadata from public;
revoke execute on function relay.raise_alert from public;
