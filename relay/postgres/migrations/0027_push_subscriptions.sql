-- Browsers are targets, too: each gets the events of all streams that its user may see at that
-- moment, of those that it has asked for (ids, or prefixes with a `*` behind).
alter table relay.alert_targets
    add column viewer_id text,
    add column viewer_by_session boolean not null default false, -- whether that is a row of users
    add column streams text[],
    -- The id of the last event that may be for it: users make many targets, so which of them have
    -- something waiting is noted, not looked for.
    add column awaits bigint not null default 0,
    drop constraint alert_targets_scope,
    add constraint alert_targets_scope check (
        case when viewer_id is not null
            then streams is not null and num_nonnulls(owner_id, stream_id, stream_prefix) = 0
        when stream_id is null then num_nonnulls(owner_id, stream_prefix) > 0
        else num_nonnulls(owner_id, stream_prefix) = 0 end
    );
create index targets_of_a_viewer on relay.alert_targets (viewer_id) where viewer_id is not null;
create index targets_of_operators on relay.alert_targets (kind) where viewer_id is null;
create index targets_that_await on relay.alert_targets (position)
    where viewer_id is not null and awaits > position;
create index grants_by_prefix on relay.grants (stream_id) where right(stream_id, 1) = '*';

-- What push services know relay by, the same for all nodes.
create table relay.push_key (
    only_one boolean primary key default true check (only_one),
    private_key text not null, -- of VAPID, as base64url
    made_at timestamptz not null default now()
);

-- Up to which event the targets of viewers were woken.
create table relay.viewers_woken (
    only_one boolean primary key default true check (only_one),
    position bigint not null
);
insert into relay.viewers_woken (position) values (0);

-- Whether a stream is one of these ids and prefixes.
create function relay.is_among(stream text, names text[]) returns boolean
language sql immutable as $$
    select exists (
        select from unnest(names) as n (name)
        where n.name = stream or (right(n.name, 1) = '*' and starts_with(stream, left(n.name, -1)))
    )
$$;

-- The users that may see a stream, of those that are known by name.
create function relay.viewers_of(stream text, owner text) returns setof text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select owner where owner is not null
    union select g.user_id from relay.grants as g where g.stream_id = stream
    union select g.user_id from relay.grants as g
        where right(g.stream_id, 1) = '*' and starts_with(stream, left(g.stream_id, -1))
$$;

-- Notes for which targets of viewers there is something, up to so many alerts and events at once.
-- What was behind a target that nothing waited for is not for it: its position moves there. Returns
-- whether there may be more; null when there was nothing.
create function relay.wake_viewers(most integer) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    behind bigint;
    last_id bigint;
    full_to bigint;
begin
    if not exists (select from relay.alert_targets as t where t.viewer_id is not null) then
        return null;
    end if;
    last_id := relay.last_outbox_id();
    if not exists (select from relay.viewers_woken as w where w.position < last_id) then
        return null;
    end if;
    select w.position into behind from relay.viewers_woken as w
    where w.position < last_id for update skip locked;
    if not found then
        return null; -- another relay does it
    end if;
    full_to := (
        select n.id from (
            (select a.alert_id as id from relay.alerts as a where a.alert_id > behind
                order by a.alert_id limit most)
            union all
            (select e.event_id from relay.stream_events as e where e.event_id > behind
                order by e.event_id limit most)
        ) as n order by n.id offset most - 1 limit 1
    );
    last_id := coalesce(full_to, last_id);
    with news as materialized (
        select n.stream_id, s.owner_id, n.kind, n.rank, max(n.id) as id
        from (
            select a.stream_id, 'alert'::text as kind, a.alert_id as id,
                coalesce(array_position('{low,medium,high,critical}'::text[], a.severity), 2) as rank
            from relay.alerts as a where a.alert_id > behind and a.alert_id <= last_id
            union all
            select e.stream_id, e.kind, e.event_id, 4
            from relay.stream_events as e where e.event_id > behind and e.event_id <= last_id
        ) as n
        join relay.streams as s on s.stream_id = n.stream_id
        where s.owner_id is not null
        group by n.stream_id, s.owner_id, n.kind, n.rank
    ), seen as (
        select n.owner_id as usr, n.stream_id, n.kind, n.rank, n.id from news as n
        union all
        select g.user_id, n.stream_id, n.kind, n.rank, n.id
        from news as n cross join lateral (
            -- By the index: there may be many grants, and few news.
            select o.user_id from relay.grants as o
            where o.stream_id = n.stream_id collate "default" offset 0
        ) as g
        union all
        select g.user_id, n.stream_id, n.kind, n.rank, n.id
        from news as n join relay.grants as g
            on right(g.stream_id, 1) = '*' and starts_with(n.stream_id, left(g.stream_id, -1))
    ), woken as (
        select t.target_id, max(s.id) as id
        from seen as s cross join lateral (
            select o.target_id, o.events, o.streams, o.min_severity
            from relay.alert_targets as o where o.viewer_id = s.usr offset 0
        ) as t
        where s.kind = any(t.events) and (t.streams = '{*}' or relay.is_among(s.stream_id, t.streams))
            and s.rank >= array_position('{low,medium,high,critical}'::text[], t.min_severity)
        group by t.target_id
    )
    update relay.alert_targets as t
    set awaits = woken.id,
        position = case when t.awaits > t.position then t.position
            else greatest(t.position, behind) end
    from woken where t.target_id = woken.target_id and woken.id > t.position;
    update relay.viewers_woken as w set position = last_id;
    return full_to is not null;
end
$$;

-- As in migration 0021, but for the events that browsers want.
create or replace function relay.tell_streams(
    the_source text,
    streams text[],
    owners text[],
    epochs bigint[],
    terms bigint[],
    onlines boolean[],
    watcheds boolean[],
    quietly boolean
) returns table (told_stream text, told_watched boolean)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    given record;
    told relay.told_streams;
    the_life bigint;
    fresh boolean;
    -- The events, in order.
    ids text[] := '{}';
    whose text[] := '{}';
    lives bigint[] := '{}';
    kinds text[] := '{}';
    of_epochs bigint[] := '{}';
    wanted bigint[];
    last_id bigint;
begin
    for given in
        select * from unnest(streams, owners, epochs, terms, onlines, watcheds)
            as g (id, usr, epoch, term, online, watched)
        order by g.id collate "C"
    loop
        fresh := false;
        loop
            select * into told from relay.told_streams as t where t.stream_id = given.id
            for update;
            if found and (not given.online or told.owner_id <> given.usr) then
                -- Another process has it by now, unless this one has taken it over since.
                exit when not given.online and told.source <> the_source
                    and (given.term = 0 or given.term <= told.term);
                if told.watched then
                    ids := ids || told.stream_id;
                    whose := whose || told.owner_id;
                    lives := lives || told.life;
                    kinds := kinds || 'stream.unwatched'::text;
                    of_epochs := of_epochs || told.epoch;
                end if;
                ids := ids || told.stream_id;
                whose := whose || told.owner_id;
                lives := lives || told.life;
                kinds := kinds || 'stream.offline'::text;
                of_epochs := of_epochs || told.epoch;
                delete from relay.told_streams as t where t.stream_id = given.id;
                told := null;
            end if;
            exit when told.stream_id is not null or not given.online;
            select s.life into the_life from relay.streams as s
            where s.stream_id = given.id and s.owner_id = given.usr;
            exit when not found; -- it has another owner meanwhile
            insert into relay.told_streams (
                stream_id, source, owner_id, life, epoch, term, watched
            ) values (
                given.id, the_source, given.usr, the_life, given.epoch, given.term, false
            ) on conflict do nothing returning * into told;
            fresh := found; -- else another process was faster: look again
            exit when fresh;
        end loop;
        if not given.online or told.stream_id is null
            or (given.term > 0 and told.term > given.term) -- another node has it by now
        then
            continue;
        end if;
        if fresh then
            ids := ids || given.id;
            whose := whose || given.usr;
            lives := lives || told.life;
            kinds := kinds || 'stream.online'::text;
            of_epochs := of_epochs || given.epoch;
        end if;
        if given.watched <> told.watched then
            ids := ids || given.id;
            whose := whose || given.usr;
            lives := lives || told.life;
            kinds := kinds || case when given.watched then 'stream.watched'::text
                else 'stream.unwatched' end;
            of_epochs := of_epochs || given.epoch;
        end if;
        update relay.told_streams as t
        set source = the_source, epoch = given.epoch, term = given.term,
            watched = coalesce(given.watched, t.watched)
        where t.stream_id = given.id
        returning t.stream_id, t.watched into told_stream, told_watched;
        return next;
    end loop;

    if quietly or cardinality(ids) = 0 then
        return;
    end if;
    wanted := array(
        select e.place from unnest(ids, whose, kinds) with ordinality as e (id, usr, kind, place)
        where exists (
                select from relay.alert_targets as t where t.events <> '{alert}'
                    and t.stream_id is not null and t.stream_id = e.id and e.kind = any(t.events)
            ) or exists (
                select from relay.alert_targets as t where t.events <> '{alert}'
                    and t.owner_id is not null and t.owner_id = e.usr and e.kind = any(t.events)
                    and starts_with(e.id, coalesce(t.stream_prefix, ''))
            ) or exists (
                select from relay.alert_targets as t where t.events <> '{alert}'
                    and t.stream_id is null and t.owner_id is null and e.kind = any(t.events)
                    and starts_with(e.id, t.stream_prefix)
            ) or exists (
                select from relay.viewers_of(e.id, e.usr) as v (usr)
                join relay.alert_targets as t on t.viewer_id = v.usr
                where e.kind = any(t.events) and relay.is_among(e.id, t.streams)
            )
        order by e.place
    );
    if cardinality(wanted) = 0 then
        return;
    end if;
    perform relay.lock_alerts();
    last_id := greatest(
        relay.last_outbox_id(), floor(extract(epoch from clock_timestamp()) * 1000000)
    );
    insert into relay.stream_events (event_id, stream_id, owner_id, life, kind, epoch)
    select last_id + w.place, ids[w.which], whose[w.which], lives[w.which], kinds[w.which],
        of_epochs[w.which]
    from unnest(wanted) with ordinality as w (which, place);
    -- However many streams a user has, and however often they come and go.
    delete from relay.stream_events as e
    using (
        select k.usr, (
            select o.event_id from relay.stream_events as o where o.owner_id = k.usr
            order by o.event_id desc offset 1000 limit 1
        ) as event_id
        from (select distinct u.usr from unnest(whose) as u (usr)) as k
    ) as excess
    where e.owner_id = excess.usr and e.event_id <= excess.event_id;
    perform pg_notify('relay_alerts', 'events');
end
$$;
