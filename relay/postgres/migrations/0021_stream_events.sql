-- Streams that targets were told to be online, so that each change is told once: whichever process
-- has the stream now, and whichever process dies.
create table relay.told_streams (
    stream_id text collate "C" primary key,
    source text not null, -- the process that has the stream
    owner_id text not null,
    life bigint not null,
    epoch bigint not null,
    term bigint not null, -- in a cluster, of the node that has it, as in relay.live_streams
    watched boolean not null
);
create index told_streams_of_a_source on relay.told_streams (source);

-- The processes that tell of streams. Nothing here outlives them, so it is not logged.
create unlogged table relay.event_sources (
    source text primary key, -- another one at each start of a process
    seen_at timestamptz not null default clock_timestamp()
);

create index targets_of_stream_events on relay.alert_targets (stream_id)
    where events <> '{alert}' and stream_id is not null;
create index targets_of_events_of_owners on relay.alert_targets (owner_id)
    where events <> '{alert}' and owner_id is not null;
create index targets_of_events_by_prefix on relay.alert_targets (target_id)
    where events <> '{alert}' and stream_id is null and owner_id is null;

-- Stores what has changed of streams since it was told last, as events where a target wants them,
-- unless `quietly`. Without `watched` it stays as it was. Returns what is known now of the streams
-- that are online. Where another process has the stream by now, nothing happens.
create function relay.tell_streams(
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
